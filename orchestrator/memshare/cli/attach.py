# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare attach`: let guests of libvirt share."""

from typing import Any

import click

from memshare.cli.change import Scope, Verb, change, guests_and_scope, plugin_at, wish_of, wishes
from memshare.domain import attachment


@click.command("attach")
@guests_and_scope
@wishes
def command(
    guests: tuple[str, ...],
    uri: str,
    plugin: str | None,
    runtime_dir: str,
    host_group: str,
    *,
    fleet: bool,
    live: bool,
    config: bool,
    current: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Let guests share: write the option and QEMU's argument into their XML.

    The plugin is loaded when QEMU starts, so a guest shares from its next start on. Without --live,
    --config or --current that is what changes, and a guest that runs with the plugin changes now as
    well. --live on a guest that was started without it is exit code 5.
    """
    wish, where = wish_of(**options), plugin_at(plugin, runtime_dir)
    verb = Verb(
        edit=lambda xml: attachment.attach(xml, wish, where, host_group),
        edit_live=lambda xml: attachment.attach_live(xml, wish, host_group),
        done="attached",
    )
    change(
        verb,
        uri,
        guests,
        Scope(live=live, config=config, current=current),
        fleet=fleet,
        dry_run=dry_run,
    )
