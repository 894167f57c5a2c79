# SPDX-License-Identifier: GPL-2.0-or-later
"""What attach, detach and set have in common: which guests, in which scope, shown or done.

For each guest everything is worked out first, so that an error leaves it as it was.
"""

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import UNSET

from memshare import paths
from memshare.clients.emulator import installed_plugin
from memshare.clients.libvirt import Hypervisor, Running, open_hypervisor
from memshare.clients.monitor import Monitor
from memshare.domain import attachment
from memshare.domain.attachment import Attachment, NotAttachedError, Wish
from memshare.domain.document import parse, text_of
from memshare.domain.option import RATE_MAX, WEIGHT_MAX
from memshare.domain.plugin import RUNTIME_DIR, SCAN_RATE_DEFAULT, Plugin, group_in, place_of
from memshare.errors import HostError, MemshareError, UnreachableError, UsageError
from memshare.model import PLUGIN_FILE, Mode, Option

Command = Callable[..., None]
Edit = Callable[[str], str]


class Verb(msgspec.Struct, frozen=True, kw_only=True):
    """What a verb does to a guest's XML, of the next start and as it runs, and how it says so."""

    edit: Edit
    edit_live: Edit
    done: str


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """virsh's words. None of them: from the next start on, and now as well where that is possible."""

    live: bool
    config: bool
    current: bool

    def of(self, guest: Running | None) -> tuple[bool, bool]:
        """Return whether to change the guest as it runs, and as it starts next."""
        if self.current:
            return guest is not None, guest is None
        if self.live or self.config:
            return self.live, self.config
        if guest is None:
            return False, True
        return attachment.read(guest.xml, "").argument is not None, guest.persistent


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One change that is ready to be made. is_due: also where the XML stays as it is."""

    name: str
    scope: str
    before: str
    after: str
    apply: Callable[[], Awaitable[None]]
    is_due: bool = False

    def diff(self) -> str:
        """Return what changes, as `diff -u` shows it; empty when nothing does."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        title = f"{self.name} {self.scope}"
        return "".join(unified_diff(before, after, title, f"{title}, changed"))


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a verb is about, and whether it is only shown."""

    uri: str
    guests: Sequence[str]
    fleet: bool
    scope: Scope
    dry_run: bool


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of where the guests' host has memshare, and of its group of guests that name none."""

    plugin_path: str | None = None
    runtime_dir: str | None = None
    group: str | None = None

    def place(self, before: str | None = None) -> tuple[Plugin, str]:
        """Return where the plugin is, and the group; raises HostError when it is not said and not here either.

        before: the plugin's argument so far, which counts where nothing was said.
        """
        if before is not None:
            known, group = place_of(before), group_in(before)
        elif self.plugin_path or (found := installed_plugin()):
            known = Plugin(path=self.plugin_path or str(found))
            group = self.group or configured_group()
        else:
            raise HostError(f"{PLUGIN_FILE} is not installed here", "say where it is with --plugin")
        plugin = Plugin(
            path=self.plugin_path or known.path, runtime_dir=self.runtime_dir or known.runtime_dir
        )
        return plugin, self.group or group


def configured_group() -> str:
    """Return the group in which the daemon puts guests that name none; raises UsageError."""
    from memshare.config import load  # slow to import

    return load(Path(os.environ.get("MEMSHARE_CONFIG", paths.CONFIG))).group


def guests_and_scope(verb: Command) -> Command:
    """Add the options that each of the verbs has; they reach it as one Target."""

    @functools.wraps(verb)
    def command(
        *,
        guests: tuple[str, ...],
        uri: str,
        fleet: bool,
        live: bool,
        config: bool,
        current: bool,
        dry_run: bool,
        **others: Any,
    ) -> None:
        scope = Scope(live=live, config=config, current=current)
        target = Target(uri=uri, guests=guests, fleet=fleet, scope=scope, dry_run=dry_run)
        verb(target, **others)

    for option in reversed(
        (
            click.argument("guests", metavar="[DOMAIN]...", nargs=-1),
            click.option("--all", "fleet", is_flag=True, help="All guests of this libvirt."),
            click.option("--live", is_flag=True, help="Change the guest as it runs."),
            click.option("--config", is_flag=True, help="Change what it starts with next."),
            click.option("--current", is_flag=True, help="As it runs, or else its next start."),
            click.option("--dry-run", is_flag=True, help="Show what would change in the XML."),
            click.option(
                "-c",
                "--connect",
                "uri",
                metavar="URI",
                envvar="LIBVIRT_DEFAULT_URI",
                default=paths.LIBVIRT_URI,
                show_default=True,
                help="Which libvirt.",
            ),
        )
    ):
        command = option(command)
    return command


class Ceiling(click.ParamType[int | str]):
    """A number, or `none`."""

    name = "RATE|none"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return the number, or the word."""
        if value == "none":
            return "none"
        number: int = click.IntRange(0, RATE_MAX).convert(value, param, ctx)
        return number


def wishes(verb: Command) -> Command:
    """Add the options that say what an owner wants and where the host has memshare: a Wish and a Host."""

    @functools.wraps(verb)
    def command(
        *arguments: Any,
        plugin: str | None,
        runtime_dir: str | None,
        host_group: str | None,
        group: str | None,
        mode: str | None,
        min_rate: int | None,
        max_rate: int | str | None,
        weight: int | None,
        **others: Any,
    ) -> None:
        if plugin and not plugin.startswith("/"):
            raise UsageError(f"--plugin {plugin}: an absolute path is needed, for QEMU to find it")
        host = Host(plugin_path=plugin, runtime_dir=runtime_dir, group=host_group)
        verb(*arguments, wish_of(group, mode, min_rate, max_rate, weight), host, **others)

    for option in reversed(
        (
            click.option("--group", help="Group of guests that may share with each other."),
            click.option(
                "--mode",
                type=click.Choice([mode.value for mode in Mode]),
                help="What may be shared.",
            ),
            click.option("--min-rate", type=click.IntRange(0, RATE_MAX), help="Pages a second."),
            click.option("--max-rate", type=Ceiling(), help="Pages a second, or none."),
            click.option("--weight", type=click.IntRange(1, WEIGHT_MAX), help="Default 1."),
            click.option(
                "--plugin", envvar="MEMSHARE_PLUGIN", help=f"Path of {PLUGIN_FILE} on that host."
            ),
            click.option(
                "--runtime-dir",
                envvar="MEMSHARE_RUNTIME_DIR",
                show_default=RUNTIME_DIR,
                help="Where the broker's sockets are on that host.",
            ),
            click.option(
                "--host-group",
                envvar="MEMSHARE_HOST_GROUP",
                show_default="the daemon's, by its configuration",
                help="Group of guests that name none and belong to no OpenStack project.",
            ),
        )
    ):
        command = option(command)
    return command


def wish_of(
    group: str | None,
    mode: str | None,
    min_rate: int | None,
    max_rate: int | str | None,
    weight: int | None,
) -> Wish:
    """Return what the options say; those not given leave things as they are."""
    ceiling = UNSET if max_rate is None else None if max_rate == "none" else int(max_rate)
    return Wish(
        group=UNSET if group is None else group,
        mode=UNSET if mode is None else Mode(mode),
        min_rate=UNSET if min_rate is None else min_rate,
        max_rate=ceiling,
        weight=UNSET if weight is None else weight,
    )


def change(verb: Verb, target: Target) -> None:
    """Do what the verb says, or show it. One guest's error does not keep the others from it."""
    if bool(target.guests) == target.fleet:
        raise UsageError(
            "name guests, or say --all" if not target.fleet else "--all, or names: not both"
        )
    if target.scope.current and (target.scope.live or target.scope.config):
        raise UsageError("--current excludes --live and --config")
    asyncio.run(_change(verb, target))


async def _change(verb: Verb, target: Target) -> None:
    errors: list[MemshareError] = []
    async with open_hypervisor(target.uri) as hypervisor:
        names = await hypervisor.names() if target.fleet else list(dict.fromkeys(target.guests))
        for name in names:
            steps: list[Step] = []
            try:
                steps = await plan(verb, hypervisor, name, target.scope)
                for step in steps:
                    await carry_out(step, verb.done, dry_run=target.dry_run)
            except UnreachableError as error:
                if not steps:  # libvirt itself
                    raise
                errors.append(error)
            except NotAttachedError as error:
                if not target.fleet:
                    errors.append(error)
            except MemshareError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    for each in errors:
        click.echo(f"error: {each}", err=True)
    if errors:
        raise MemshareError(f"{len(errors)} of {len(names)} guests were left as they are")


async def carry_out(step: Step, done: str, *, dry_run: bool) -> None:
    """Make a change and say so, or print what it would be."""
    diff = step.diff()
    if dry_run:
        click.echo(diff, nl=False)
        return
    is_due = bool(diff) or step.is_due
    if is_due:
        await step.apply()
    click.echo(f"{step.name}: {done if is_due else 'is as wanted'} ({step.scope})", err=True)


async def plan(verb: Verb, hypervisor: Hypervisor, name: str, scope: Scope) -> list[Step]:
    """Return what is to be done to one guest; every error names the guest."""
    guest = await hypervisor.find(name)
    live, config = scope.of(guest)
    steps = []
    try:
        if config:
            steps.append(await _config_step(verb, hypervisor, name))
        if live:
            if guest is None:
                raise MemshareError("does not run", "use --config")
            steps.append(_live_step(verb, hypervisor, guest))
    except MemshareError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise type(error)(f"{name}: {error}", error.hint) from error
    return steps


async def _config_step(verb: Verb, hypervisor: Hypervisor, name: str) -> Step:
    shown = await hypervisor.persistent_xml(name, secure=False)

    async def apply() -> None:
        before = await hypervisor.persistent_xml(name, secure=True)
        await hypervisor.define(name, verb.edit(before))

    # As it is after parsing, or quotes would differ everywhere.
    return Step(
        name=name,
        scope="config",
        before=text_of(parse(shown)),
        after=verb.edit(shown),
        apply=apply,
    )


def _live_step(verb: Verb, hypervisor: Hypervisor, guest: Running) -> Step:
    before, after = text_of(parse(guest.xml)), verb.edit_live(guest.xml)
    told, wanted = attachment.read(guest.xml, ""), attachment.read(after, "").option

    async def apply() -> None:
        await steer(hypervisor.monitor(guest), told, wanted)
        if after != before:
            await hypervisor.set_live_option(guest.name, wanted)

    return Step(
        name=guest.name,
        scope="live",
        before=before,
        after=after,
        apply=apply,
        # A plugin that was given no option may share all the same.
        is_due=wanted is None and told.argument is not None,
    )


async def steer(monitor: Monitor, before: Attachment, wanted: Option | None) -> None:
    """Have a guest's plugin do what its owner wants now, as it would after a start. None: share nothing.

    What did not change is left alone: somebody may have set it meanwhile.
    """
    if before.argument is None:
        return
    if wanted is None:
        await monitor.set("mode", Mode.OFF)
        return
    old = before.option
    rate = wanted.clamp(SCAN_RATE_DEFAULT)
    if old is None or old.clamp(SCAN_RATE_DEFAULT) != rate:
        await monitor.set("scan-rate", rate)
    if old is None or old.mode != wanted.mode:
        await monitor.set("mode", wanted.mode)
