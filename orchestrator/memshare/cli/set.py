# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare set`: change what the owner of an attached guest wants."""

from typing import Any

import click

from memshare.cli.change import Scope, Verb, change, guests_and_scope, plugin_at, wish_of, wishes
from memshare.domain import attachment
from memshare.domain.attachment import Wish
from memshare.errors import UsageError


@click.command("set")
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
    """Change group, mode, rates or weight of guests that are attached.

    A guest that runs is steered at once; its group is fixed until it starts anew.
    """
    wish = wish_of(**options)
    if wish == Wish():
        raise UsageError("nothing to set", "memshare set --help")
    where = plugin_at(plugin, runtime_dir)
    verb = Verb(
        edit=lambda xml: attachment.amend(xml, wish, where, host_group),
        edit_live=lambda xml: attachment.amend_live(xml, wish, host_group),
        done="set",
    )
    change(
        verb,
        uri,
        guests,
        Scope(live=live, config=config, current=current),
        fleet=fleet,
        dry_run=dry_run,
    )
