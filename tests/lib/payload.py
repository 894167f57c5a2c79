# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of one file that write to memory and compare it again and again (tests/payload)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.lib.broker import Broker, build_directory
from tests.lib.vm import DEADLINE_SECONDS, Vm, VmError, plugin_arguments, running, until

SCAN_RATE = 200_000
#: What `running` gives the guest by default is enough for the pages it checks.
STEADY_PAGES = 4096
#: They are two by two equal, while none of the two has been written an odd number of times.
SHARED_PAGES_BAR = STEADY_PAGES // 3


class Report:
    """What one guest says on its serial port."""

    def __init__(self, path: Path, payload: str = "writer") -> None:
        self.path = path
        self._payload = payload

    @property
    def arguments(self) -> Sequence[str]:
        """What makes QEMU run the guest; a destination of migration needs the same."""
        payload = build_directory() / "tests" / "payload" / f"payload-{self._payload}.elf"
        return ["-kernel", str(payload), "-serial", f"file:{self.path}"]

    async def rounds(self) -> int:
        """Tell how many rounds it has found everything right here; fails at the first wrong word."""
        text = self.path.read_text() if self.path.exists() else ""
        if "bad" in text:
            raise VmError(f"the guest has read what it did not write: {text[text.index('bad') :]}")
        return text.count("\n")

    async def more_rounds(
        self, wanted: int = 3, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Wait for so many more rounds, the one under way not counted."""
        enough = await self.rounds() + wanted + 1
        await until(self.rounds, lambda rounds: rounds >= enough, deadline_seconds)


async def shares_well(vm: Vm) -> None:
    """Wait until a good part of what is equal is shared, and zero pages are given back."""
    await vm.stats_when(
        lambda stats: bool(stats["shared_pages"] >= SHARED_PAGES_BAR and stats["zero_pages"])
    )


async def shares_on(vm: Vm) -> None:
    """Wait until more was merged, and the kernel tells who writes."""
    merged = (await vm.stats())["merged_pages"]
    await vm.stats_when(
        lambda stats: bool(stats["merged_pages"] > merged and stats["tracked_pages"])
    )


def sharing(broker: Broker, scan_rate: int = SCAN_RATE) -> list[str]:
    """Return -plugin for a guest of that broker's: what it writes all the time is merged all the time."""
    return plugin_arguments(socket=str(broker.socket_path()), scan_rate=scan_rate, eager="on")


@asynccontextmanager
async def settled(
    broker: Broker, report: Report, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Vm]:
    """Run such a guest, and wait until it shares well."""
    arguments = (*sharing(broker), *report.arguments, *arguments)
    async with running(*arguments, environment=environment) as vm:
        await shares_well(vm)
        await report.more_rounds()
        yield vm
