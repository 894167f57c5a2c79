# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare set`: change what the owner of an attached guest wants."""

import click

from memshare.cli.change import Host, Target, Verb, change, guests_and_scope, wishes
from memshare.domain import attachment
from memshare.domain.attachment import Wish
from memshare.errors import UsageError


@click.command("set")
@guests_and_scope
@wishes
def command(target: Target, wish: Wish, host: Host) -> None:
    """Change group, mode, rates or weight of guests that are attached.

    A guest that runs is steered at once; its group is fixed until it starts anew. Where plugin and sockets are, and
    the group of guests that name none, stays as it is unless it is said.
    """
    if wish == Wish():
        raise UsageError("nothing to set", "memshare set --help")
    verb = Verb(
        edit=lambda xml: attachment.amend(xml, wish, host.place),
        edit_live=lambda xml: attachment.amend_live(xml, wish, host.group),
        done="set",
    )
    change(verb, target)
