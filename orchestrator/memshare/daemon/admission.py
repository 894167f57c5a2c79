# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the broker told of this host's guests of libvirt, and keeps its figures.

Told again whenever a guest comes or goes, and looked after every few seconds: a broker that has restarted knows
nobody.
"""

import asyncio
from pathlib import Path
from typing import NoReturn

import structlog

from memshare.clients.admission import reconcile
from memshare.clients.broker import read_broker
from memshare.daemon.inventory import Inventory
from memshare.errors import MemshareError
from memshare.model import Broker

log = structlog.get_logger()

LOOK_SECONDS = 5.0


class Admission:
    """The daemon's side of the broker. broker is its last answer; None while it does not answer."""

    def __init__(self, control: Path, inventory: Inventory, *, announces: bool) -> None:
        """announces False: others say who may connect, and what they said is left alone."""
        self.broker: Broker | None = None
        self._control = control
        self._inventory = inventory
        self._announces = announces
        self._changed = inventory.listener()
        self._told: set[str] = set()

    async def run(self) -> NoReturn:
        """Look after the broker, until cancelled."""
        while True:
            await self._look()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def _look(self) -> None:
        problems: set[str] = set()
        try:
            if self._announces:
                refused = await reconcile(
                    self._control,
                    self._inventory.announcements,
                    forgets=self._inventory.may_forget,
                )
                problems |= {str(error) for error in refused}
            self.broker = await read_broker(self._control)
        except MemshareError as error:
            self.broker = None
            problems.add(str(error))
        for problem in problems - self._told:
            log.warning("broker_problem", reason=problem)
        if self._told and not problems:
            log.info("broker_well_again", control=str(self._control))
        self._told = problems
