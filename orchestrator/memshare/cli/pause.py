# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare pause`: nothing new is shared."""

import asyncio

import click

from memshare.cli.hold import Target, for_each, is_told, of_guests, opened
from memshare.clients.holds import Hold, Verb, hold, read_holds
from memshare.clients.sources import Found
from memshare.model import WITHOUT_PLUGIN


@click.command("pause")
@of_guests
def command(target: Target) -> None:
    """Stop scanning guests: nothing new is shared, what is shared stays.

    It lasts until `memshare resume`, over restarts of guest and daemon. Works without the daemon. Costs no memory, and
    leaves guests drained that are;
    to have guests share nothing at all, `memshare drain`.
    """
    asyncio.run(_pause(target))


async def _pause(target: Target) -> None:
    async with opened(target) as (guests, _):
        holds = read_holds(target.state_dir)
        for name in target.names:
            known = holds.all if name is None else holds.guests.get(name)
            if (
                known is None or known.verb is not Verb.DRAIN
            ):  # that stops more, and knows the way back
                hold(target.state_dir, name, Hold(verb=Verb.PAUSE))
            else:
                for freed in known.released - holds.guests.keys():
                    hold(target.state_dir, freed, Hold(verb=Verb.PAUSE))
        await for_each(guests, _stop)


async def _stop(guest: Found) -> str:
    async with guest.monitor() as monitor:
        if await is_told(monitor, "scan-rate", 0):
            return "paused"
    return WITHOUT_PLUGIN
