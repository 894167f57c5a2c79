# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare completion`: what a shell needs to complete verbs and options."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "fish", "zsh")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete verbs and options of memshare.

    \b
    bash   memshare completion bash > /usr/share/bash-completion/completions/memshare
    fish   memshare completion fish > /usr/share/fish/vendor_completions.d/memshare.fish
    zsh    memshare completion zsh > /usr/share/zsh/vendor-completions/_memshare
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    # The variable is the one that click looks for when the command starts.
    click.echo(kind(root.command, {}, "memshare", "_MEMSHARE_COMPLETE").source(), nl=False)
