# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare resume`: the end of a pause or a drain."""

import asyncio

import click
import msgspec

from memshare.cli.hold import Target, for_each, of_guests, opened
from memshare.clients.holds import Hold, Verb, hold, read_holds, release
from memshare.clients.monitor import NotSharingError
from memshare.clients.sources import Found
from memshare.domain.plugin import SCAN_RATE_DEFAULT
from memshare.errors import MemshareError
from memshare.model import WITHOUT_PLUGIN, Mode, Option


@click.command("resume")
@of_guests
def command(target: Target) -> None:
    """Let guests share again that were paused or drained.

    They go on as their owners want; the daemon, if it runs, sets their rates within seconds. --all ends what was said
    of all guests, and what was said of each. A guest that cannot be reached stays held.
    """
    asyncio.run(_resume(target))


async def _resume(target: Target) -> None:
    before = read_holds(target.state_dir)
    if not target.everyone and before.all is not None:
        raise MemshareError("all guests are held", "memshare resume --all")
    async with opened(target, before.guests) as (guests, are_all):
        reached = {guest.domain.name for guest in guests}
        for name in [None, *before.guests] if target.everyone else target.guests:
            if are_all or name in reached:
                release(target.state_dir, name)
        if before.all is not None and not are_all:
            released = before.all.released | reached
            hold(target.state_dir, None, msgspec.structs.replace(before.all, released=released))
        for name in set(target.guests) - reached:
            click.echo(f"{name}: does not run; it is not held any more", err=True)

        async def let_go(guest: Found) -> str:
            name = guest.domain.name
            held = before.of(name)
            if held is None:
                return "was not held"
            try:
                return await _let_go(guest, held)
            except MemshareError:
                hold(target.state_dir, name, held)  # so that it can be said again
                raise

        await for_each(guests, let_go)


async def _let_go(guest: Found, held: Hold) -> str:
    option = guest.domain.option or Option()
    said = "resumed"
    async with guest.monitor() as monitor:
        try:
            stats = await monitor.stats()
        except NotSharingError:
            return WITHOUT_PLUGIN
        if held.verb is Verb.DRAIN and stats.mode == Mode.OFF:
            shared = held.modes.get(guest.domain.name)
            if mode := guest.domain.option.mode if guest.domain.option else shared:
                await monitor.set("mode", mode)
            else:
                # Never more than its owner wants; a daemon that has drained it knows how much that is.
                said = "resumed; its mode stays off unless the daemon knows what it was"
        if stats.scan_rate_pages == 0:
            await monitor.set("scan-rate", option.clamp(SCAN_RATE_DEFAULT))
    return said
