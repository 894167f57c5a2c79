# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare drain`: guests share nothing any more, and have all their memory for themselves."""

import asyncio
from pathlib import Path

import click

from memshare.cli.hold import Target, for_each, is_told, of_guests, opened
from memshare.clients.holds import Hold, Verb, hold, read_holds
from memshare.clients.host import read_host
from memshare.clients.sources import Found
from memshare.errors import HostError, MemshareError
from memshare.model import WITHOUT_PLUGIN, Mode, PageStats
from memshare.render import human_bytes

PAGE_BYTES = 4096
LOOK_SECONDS = 0.2


@click.command("drain")
@click.option("--force", is_flag=True, help="Even where the host has not so much memory left.")
@click.option("--no-wait", is_flag=True, help="Return at once; memory comes back at its own pace.")
@of_guests
def command(target: Target, *, force: bool, no_wait: bool) -> None:
    """Have guests share nothing: every shared page becomes their own again.

    Says first how much memory comes back into use, and refuses when the host has not so much left. It lasts until
    `memshare resume`, over restarts of guest and daemon. Works without the daemon.
    """
    asyncio.run(_drain(target, force=force, waits=not no_wait))


async def _drain(target: Target, *, force: bool, waits: bool) -> None:
    async with opened(target) as (guests, _):
        figures = {guest.domain.name: await _stats(guest) for guest in guests}
        coming = sum(stats.shared_pages for stats in figures.values() if stats) * PAGE_BYTES
        cgroup = Path(target.config.cgroup) if target.config.cgroup else None
        try:
            headroom = read_host(cgroup).headroom_bytes
        except HostError as error:
            if not force:
                raise
            click.echo(f"warning: {error}", err=True)
            headroom = read_host().headroom_bytes
        click.echo(
            f"{human_bytes(coming)} come back into use, {human_bytes(headroom)} are left", err=True
        )
        if coming > headroom and not force:
            raise HostError("not so much memory is left", "drain fewer guests, or say --force")
        holds = read_holds(target.state_dir)
        modes = {name: stats.known_mode for name, stats in figures.items() if stats}
        for name in target.names:
            known = holds.all if name is None else holds.guests.get(name)
            before = {one: mode for one, mode in modes.items() if mode and name in (None, one)}
            # What is drained already shared something else before than it shares now.
            before |= known.modes if known else {}
            hold(target.state_dir, name, Hold(verb=Verb.DRAIN, modes=before))
        await for_each(guests, lambda guest: _empty(guest, waits=waits))


async def _stats(guest: Found) -> PageStats | None:
    """Return a guest's figures, None for one that has none to tell."""
    try:
        async with guest.monitor() as monitor:
            return await monitor.stats()
    except MemshareError:
        return None


async def _empty(guest: Found, *, waits: bool) -> str:
    async with guest.monitor() as monitor:
        if not await is_told(monitor, "mode", Mode.OFF):
            return WITHOUT_PLUGIN
        stats = await monitor.stats()
    while waits and stats.shared_pages:
        await asyncio.sleep(LOOK_SECONDS)
        # Not held open meanwhile: a monitor serves one client at a time, and the daemon looks too.
        async with guest.monitor() as monitor:
            stats = await monitor.stats()
        if stats.mode != Mode.OFF:
            raise MemshareError("was given another mode meanwhile")
    left = f", {human_bytes(stats.shared_pages * PAGE_BYTES)} still shared" if not waits else ""
    return f"drained{left}"
