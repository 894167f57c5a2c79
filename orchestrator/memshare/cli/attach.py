# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare attach`: let guests of libvirt share."""

import click

from memshare.cli.change import Host, Target, Verb, change, guests_and_scope, wishes
from memshare.domain import attachment
from memshare.domain.attachment import Wish


@click.command("attach")
@guests_and_scope
@wishes
def command(target: Target, wish: Wish, host: Host) -> None:
    """Let guests share: write the option and QEMU's argument into their XML.

    The plugin is loaded when QEMU starts, so a guest shares from its next start on. Without --live,
    --config or --current that is what changes, and a guest that runs with the plugin changes now as
    well. --live on a guest that was started without it is exit code 5.
    """
    plugin, group = host.place()
    verb = Verb(
        edit=lambda xml: attachment.attach(xml, wish, plugin, group),
        edit_live=lambda xml: attachment.attach_live(xml, wish, group),
        done="attached",
    )
    change(verb, target)
