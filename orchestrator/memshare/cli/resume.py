# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare resume`: the end of a pause or a drain."""

import asyncio

import click

from memshare.cli.hold import Target, for_each, of_guests, opened
from memshare.clients.holds import Hold, Verb, read_holds, release
from memshare.clients.monitor import NotSharingError
from memshare.clients.sources import Found
from memshare.domain.plugin import SCAN_RATE_DEFAULT
from memshare.errors import MemshareError
from memshare.model import Mode, Option


@click.command("resume")
@of_guests
def command(target: Target) -> None:
    """Let guests share again that were paused or drained.

    They go on as their owners want; the daemon, if it runs, sets their rates within seconds. --all ends what was said
    of all guests, and what was said of each.
    """
    asyncio.run(_resume(target))


async def _resume(target: Target) -> None:
    before = read_holds(target.state_dir)
    if not target.everyone and before.all is not None:
        raise MemshareError("all guests are held", "memshare resume --all")
    async with opened(target) as guests:
        for name in [None, *before.guests] if target.everyone else target.guests:
            release(target.state_dir, name)
        await for_each(guests, lambda guest: _let_go(guest, before.of(guest.domain.name)))


async def _let_go(guest: Found, held: Hold | None) -> str:
    if held is None:
        return "was not held"
    option = guest.domain.option or Option()
    async with guest.monitor() as monitor:
        try:
            stats = await monitor.stats()
        except NotSharingError:
            return "runs without memshare"
        if held.verb is Verb.DRAIN and stats.mode == Mode.OFF:
            owner = guest.domain.option.mode if guest.domain.option else held.mode
            await monitor.set("mode", owner or Mode.CONTENT)
        if stats.scan_rate_pages == 0:
            await monitor.set("scan-rate", option.clamp(SCAN_RATE_DEFAULT))
    return "resumed"
