# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare detach`: guests of libvirt share no more."""

import click

from memshare.cli.change import Target, Verb, change, guests_and_scope
from memshare.domain import attachment


@click.command("detach")
@guests_and_scope
def command(target: Target) -> None:
    """Take option and plugin out of guests' XML.

    A guest that runs with the plugin gets all its memory back for itself at once; the plugin, idle, stays
    until it ends.
    """
    verb = Verb(edit=attachment.detach, edit_live=attachment.detach_live, done="detached")
    change(verb, target)
