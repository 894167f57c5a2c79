# SPDX-License-Identifier: GPL-2.0-or-later
"""The `memshare` command. Each verb's module is imported only when that verb is used."""

import asyncio
import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from memshare.errors import MemshareError

VERBS = {
    "status": "this host at a glance: memory, broker, groups, savings",
    "list": "what each guest shares and saves, or why it does not",
    "show": "everything about one guest",
    "top": "what guests do right now",
    "audit": "whether what broker and guests count is true",
    "doctor": "what is in the way of sharing on this host, and what to do about it",
    "attach": "let guests of libvirt share",
    "detach": "guests of libvirt share no more",
    "set": "change group, mode, rates or weight of attached guests",
    "pause": "stop scanning guests, until resume",
    "drain": "have guests share nothing, until resume",
    "resume": "let guests share again",
    "explain": "why a guest has its scan rate",
    "fits": "whether one more guest is safe on this host",
    "daemon": "steer the guests and guard the host",
    "bench": "experiments: what sharing saves and costs, against the kernel's KSM",
    "config": "check or show the configuration of the daemon",
    "completion": "what makes a shell complete verbs and options",
}


class LazyGroup(click.Group):
    """A group whose verbs live in modules of their own, named like the verb after a prefix."""

    def __init__(
        self, *args: Any, verbs: Mapping[str, str], package: str = "memshare.cli.", **kwargs: Any
    ) -> None:
        """Know what each verb does."""
        super().__init__(*args, **kwargs)
        self._verbs = verbs
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command."""
        if cmd_name not in self._verbs:
            return None
        command: click.Command = importlib.import_module(f"{self._package}{cmd_name}").command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer verbs without importing them; options as any group does."""
        verbs = [
            CompletionItem(verb, help=what)
            for verb, what in self._verbs.items()
            if verb.startswith(incomplete)
        ]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(self._verbs.items()))


@click.group(cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="memshare", prog_name="memshare")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def root(*, debug: bool) -> None:  # run() looks at --debug itself
    """Share equal memory pages between the guests of this host."""


def run(command: click.Command, arguments: Sequence[str], name: str) -> NoReturn:
    """Run a command and exit; an error is one line, a hint and the exit code of its kind."""
    try:
        code = command.main(args=list(arguments), prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message(), f"{name} --help", error.exit_code)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        fail("interrupted", None, 130)
    except Exception as caught:
        first = first_of(caught)
        if "--debug" in arguments or not isinstance(first, MemshareError):
            raise
        fail(str(first), first.hint, first.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, hint: str | None, code: int) -> NoReturn:
    """Print the two lines and exit."""
    click.echo(f"error: {message[:1].lower()}{message[1:].removesuffix('.')}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    sys.exit(code)


def first_of(error: Exception) -> Exception:
    """Return the first of the errors that a TaskGroup gathered."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> NoReturn:
    """Run `memshare`.

    A verb makes many objects and ends soon: collecting garbage at the usual pace was a tenth of its time.
    """
    gc.set_threshold(100_000)
    run(root, sys.argv[1:], "memshare")
