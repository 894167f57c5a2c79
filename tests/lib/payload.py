# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that writes to its memory and compares all of it again and again (tests/payload/writer.c)."""

from collections.abc import Sequence
from pathlib import Path

from tests.lib.broker import build_directory
from tests.lib.vm import Vm, VmError, until

#: What `running` gives the guest by default is enough for the pages it checks.
STEADY_PAGES = 4096
#: Steady pages are two by two equal, and few are written at any time.
SHARED_PAGES_BAR = STEADY_PAGES * 8 // 10


class Report:
    """What one guest says on its serial port."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def arguments(self) -> Sequence[str]:
        """What makes QEMU run the guest; a destination of migration needs the same."""
        payload = build_directory() / "tests" / "payload" / "payload-writer.elf"
        return ["-kernel", str(payload), "-serial", f"file:{self.path}"]

    async def rounds(self) -> int:
        """Tell how many rounds it has found everything right here; fails at the first wrong word."""
        text = self.path.read_text() if self.path.exists() else ""
        if "bad" in text:
            raise VmError(f"the guest has read what it did not write: {text[text.index('bad') :]}")
        return text.count("\n")

    async def more_rounds(self, wanted: int = 3) -> None:
        """Wait for so many more looks at everything, the one under way not counted."""
        enough = await self.rounds() + wanted + 1
        await until(self.rounds, lambda rounds: rounds >= enough)


async def shares_well(vm: Vm) -> None:
    """Wait until most of what is equal is shared, and zero pages are given back."""
    await vm.stats_when(
        lambda stats: bool(stats["shared_pages"] >= SHARED_PAGES_BAR and stats["zero_pages"])
    )
