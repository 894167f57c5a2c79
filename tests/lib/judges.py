# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of others that judge memory, each in guests that share theirs while they run.

memtest86+ is the guest's kernel; memtester and stress-ng run in a Debian without services. guests/judges has
the recipe. Each guest of a run does the same, so that whatever pattern is written in one is found in the others.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.lib.vm import Stats, Vm, VmError, running

from memshare.bench.machine import KERNEL_OPTIONS

LOOK_SECONDS = 0.5
SCREEN_ADDRESS, COLUMNS, ROWS = 0xB8000, 80, 25


class State(NamedTuple):
    """How far one guest is."""

    is_done: bool
    errors: int
    says: str


class Judge(Protocol):
    """What runs in a guest."""

    @property
    def name(self) -> str: ...
    @property
    def memory_mib(self) -> int: ...
    def arguments(self, directory: Path) -> Sequence[str]:
        """Make QEMU run it, with files in that directory."""

    async def look(self, vm: Vm, directory: Path) -> State:
        """Tell how far it is; raises VmError where it cannot go on."""


class Verdict(NamedTuple):
    """What became of one judge; counts are of all its guests together."""

    judge: str
    seconds: float
    merged_pages: int
    breaks: int
    rebuilt_pages: int
    errors: int
    says: str  # where there are some


class Memtest(NamedTuple):
    """memtest86+ until it has passed so many times. Its first pass is shorter than the others.

    The last test of a pass waits for minutes whether memory fades.
    """

    folder: Path  # of guests/judges
    memory_mib: int
    passes: int = 1
    last_test: int | None = None  # ends when a later one begins

    @property
    def name(self) -> str:
        """As a table shows it."""
        return f"memtest86+, {self.memory_mib} MiB"

    def arguments(self, directory: Path) -> Sequence[str]:
        """Nothing on the board is probed: it is memory that is tested."""
        kernel = self.folder / "memtest86+.bin"
        return ["-vga", "std", "-kernel", str(kernel), "-append", "nopause nobench nosm nosmp"]

    async def look(self, vm: Vm, directory: Path) -> State:
        """Read its screen."""
        path = directory / "screen"
        size = COLUMNS * ROWS * 2  # a character, its colour
        await vm.execute("pmemsave", val=SCREEN_ADDRESS, size=size, filename=str(path))
        return read_screen(path.read_bytes()[::2].decode("cp437"), self)


def read_screen(screen: str, wanted: Memtest) -> State:
    """Tell how far memtest86+ is from the characters of its screen. Pure."""
    counts = re.search(r"Test #(\d+) .*Pass: +(\d+) +Errors: +(\d+)", screen)
    if not counts:
        return State(is_done=False, errors=0, says="begins")
    test, passed, errors = (int(count) for count in counts.groups())
    is_done = passed >= wanted.passes or (wanted.last_test is not None and test > wanted.last_test)
    return State(is_done, errors, f"pass {passed + 1}, test {test}")


class Command(NamedTuple):
    """A program in a Debian without services, until it has ended."""

    boot: Path  # folder of guests/linux
    folder: Path  # of guests/judges
    memory_mib: int
    command: str

    @property
    def name(self) -> str:
        """As a table shows it."""
        return self.command.partition(" ")[0]

    def arguments(self, directory: Path) -> Sequence[str]:
        """The kernel and initrd are those of the other Debian guests."""
        disk = f"file={self.folder}/judges.ext4,format=raw,if=virtio,snapshot=on"
        return [
            *("-kernel", str(self.boot / "vmlinuz"), "-initrd", str(self.boot / "initrd")),
            *("-append", f"{KERNEL_OPTIONS} -- {self.command}", "-drive", disk),
            *("-serial", f"file:{directory}/console", "-no-reboot"),
        ]

    async def look(self, vm: Vm, directory: Path) -> State:
        """Read its console."""
        return read_console((directory / "console").read_text(errors="replace"))


def read_console(console: str) -> State:
    """Tell how far a program is from what is on its guest's console. Pure."""
    verdict = re.search(r"^verdict (\d+) (\d+)\r?\n", console, re.MULTILINE)
    if not verdict:
        lines = console.split("\n")
        return State(is_done=False, errors=0, says=lines[-2].strip() if lines[1:] else "boots")
    code, errors = (int(number) for number in verdict.groups())
    if code and not errors:
        raise VmError(f"it could not judge: {console}")
    return State(is_done=True, errors=errors, says=console if errors else "all is well")


async def judge_sharing_guests(
    judge: Judge,
    plugin: Sequence[str],
    deadline_seconds: float,
    tell: Callable[[str], None] = lambda says: None,
    guests: int = 2,
) -> Verdict:
    """Run a judge in several guests that share, to its end; at an error the verdict comes at once.

    ``plugin`` are the arguments that make them share.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        vms: list[tuple[Vm, Path]] = []
        for _ in range(guests):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memshare-")))
            vm = running(
                *plugin,
                *judge.arguments(directory),
                memory_mib=judge.memory_mib,
                accel="tcg,tb-size=64",
            )
            vms.append((await stack.enter_async_context(vm), directory))
        while True:
            try:
                states = [await judge.look(*vm) for vm in vms]
                stats = [await vm.stats() for vm, _ in vms]
            except VmError as error:
                raise VmError(f"{judge.name}: {error} {consoles(vms)}") from error
            verdict = sum_up(judge, time.monotonic() - started, states, stats)
            tell(f"{judge.name}: {states[0].says}; {verdict.merged_pages} pages merged")
            if verdict.errors or all(state.is_done for state in states):
                return verdict
            if verdict.seconds > deadline_seconds:
                raise VmError(f"{judge.name}: not within {deadline_seconds:.0f} s: {states}")
            await asyncio.sleep(LOOK_SECONDS)


def consoles(vms: Sequence[tuple[Vm, Path]]) -> str:
    """What is on the guests' consoles, of those that have one."""
    paths = (directory / "console" for _, directory in vms)
    return "; ".join(path.read_text(errors="replace") for path in paths if path.exists())


def sum_up(
    judge: Judge, seconds: float, states: Sequence[State], stats: Sequence[Stats]
) -> Verdict:
    """Add up what all guests have come to. Pure."""
    return Verdict(
        judge.name,
        seconds,
        *(sum(one[name] for one in stats) for name in ("merged_pages", "breaks", "rebuilt_pages")),
        sum(state.errors for state in states),
        "\n".join(state.says for state in states if state.errors),
    )
