# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench steering`: who gets the scanning, when a guest changes, and when memory is short.

Six stock QEMUs with a real broker and a real daemon. Guests rewrite their memory all the time (tests/payload/tenant.c):
four fertile ones with contents that others have too, two barren ones with what nobody has. Then one of the
barren turns fertile, and at last the limit of the guests' cgroup is lowered to little more than they use. A second of
each guest's figures is a line of the recording.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from memshare.bench.cgroup import MemoryCgroup, limited
from memshare.bench.daemon import SOCKET, configuration, open_daemon
from memshare.bench.frames import GROUP
from memshare.bench.machine import QEMU, end_process
from memshare.bench.progress import Progress
from memshare.bench.rig import SOURCE, finish, machine_facts, session
from memshare.bench.workers import open_broker
from memshare.cli import run
from memshare.clients.daemon import ask
from memshare.clients.host import read_cgroup
from memshare.clients.qmp import open_monitor
from memshare.errors import MemshareError
from memshare.model import PageStats

FERTILE, BARREN = ("fertile1", "fertile2", "fertile3", "fertile4"), ("barren1", "barren2")
GUESTS = (*FERTILE, *BARREN)
RAM_MIB = 96
SHARE_BAR, SHARE_BAR_SECONDS = 0.8, 60.0
FAIR_BAR_SECONDS = 60.0
SQUEEZE_BAR_SECONDS = 2.0
#: Shares are of what was scanned in so many seconds before.
TRAIL_SECONDS = 20
#: A guest's part is fair that is so near to the mean of the fertile ones'.
FAIR_RATIO = 0.8
SQUEEZE_SECONDS = 8.0
FULL_RATIO = 0.9
SQUEEZED_BYTES = 12 << 20
UNLIMITED_BYTES = 64 << 30
#: The default: with plenty of memory free, guests want more than there is.
BUDGET_CPU_RATIO = 0.10


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all guests, in their order. Seconds since the daemon's start; rates are those in force."""

    at_seconds: float
    rate_pages: list[int]
    scanned_pages: list[int]
    merged_pages: list[int]
    paid_pages: list[int]
    cpu_ns: list[int]
    breaks: list[int]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded, and the figures that have bars. None: it did not happen."""

    case: str
    guests: list[str]
    fertile_share: float
    seconds_to_fair: float | None
    seconds_to_full: float | None
    turned_at_seconds: float
    squeezed_at_seconds: float
    seconds: list[Second]
    facts: dict[str, Any]


class Guest:
    """A QEMU, its monitor for this measurement, and the port that tells it what to write."""

    def __init__(self, name: str, folder: Path, process: asyncio.subprocess.Process) -> None:
        """Wrap a started QEMU."""
        self.name = name
        self.process = process
        self._folder = folder
        self._port: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def tell(self, kind: str) -> None:
        """Have it write this kind from now on, all of its memory first; returns when it has."""
        if self._port is None:
            path = self._folder / f"{self.name}.port"
            self._port = await _patiently(lambda: asyncio.open_unix_connection(str(path)))
        self._port[1].write(kind.encode())
        if not await self._port[0].readline():
            raise MemshareError(f"guest {self.name} ended")

    async def stats(self) -> PageStats:
        """Return its figures, by a monitor that the daemon does not use."""
        async with open_monitor(self._folder / f"{self.name}.own") as monitor:
            return await monitor.stats()


async def _patiently(connect: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return await connect()
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def open_guests(
    folder: Path, build: Path, cgroup: MemoryCgroup
) -> AsyncIterator[list[Guest]]:
    """Start all guests; each has one monitor for the daemon and one for us."""
    payload = build / "tests" / "payload" / "payload-tenant.elf"
    plugin = build / "qemu-plugin" / "plugin" / "libmemshare-qemu.so"
    async with AsyncExitStack() as stack:
        guests = []
        for name in GUESTS:
            process = await asyncio.create_subprocess_exec(
                *(QEMU, "-name", name, "-accel", "tcg,tb-size=16", "-m", str(RAM_MIB)),
                *("-nodefaults", "-display", "none", "-kernel", str(payload)),
                *("-serial", f"unix:{folder}/{name}.port,server=on,wait=off"),
                *("-qmp", f"unix:{folder}/qmp/{name}.sock,server=on,wait=off"),
                *("-qmp", f"unix:{folder}/{name}.own,server=on,wait=off"),
                *("-plugin", f"{plugin},socket={folder}/{GROUP}.sock,group={GROUP}"),
                start_new_session=True,
                preexec_fn=cgroup.enter,
            )
            stack.push_async_callback(end_process, process)
            guests.append(Guest(name, folder, process))
        yield guests


def trailing(seconds: Sequence[Second], names: Sequence[str]) -> float:
    """Pages that these guests had scanned in the last TRAIL_SECONDS, by the mean of them. Pure."""
    now = seconds[-1]
    before = next(
        second for second in seconds if second.at_seconds >= now.at_seconds - TRAIL_SECONDS
    )
    return statistics.fmean(
        now.scanned_pages[i] - before.scanned_pages[i]
        for i, name in enumerate(GUESTS)
        if name in names
    )


def fertile_share(seconds: Sequence[Second]) -> float:
    """The fertile guests' part of what was scanned in the last TRAIL_SECONDS. Pure."""
    fertile = trailing(seconds, FERTILE) * len(FERTILE)
    barren = trailing(seconds, BARREN) * len(BARREN)
    return fertile / (fertile + barren) if fertile + barren else 0.0


class Recording:
    """Looks at all guests each second."""

    def __init__(self, guests: Sequence[Guest], progress: Progress) -> None:
        """Begin."""
        self._guests = guests
        self._progress = progress
        self._began = time.monotonic()
        self.seconds: list[Second] = []

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    async def look(self) -> Second:
        """Look once."""
        stats = await asyncio.gather(*(guest.stats() for guest in self._guests))
        return Second(
            at_seconds=round(self.now, 3),
            rate_pages=[one.scan_rate_pages for one in stats],
            scanned_pages=[one.scanned_pages for one in stats],
            merged_pages=[one.merged_pages + one.zeroed_pages for one in stats],
            paid_pages=[one.paid_pages for one in stats],
            cpu_ns=[one.scan_cpu_ns for one in stats],
            breaks=[one.breaks for one in stats],
        )

    async def go_on(self, seconds: float, ends: Callable[[], bool] = lambda: False) -> bool:
        """Record so long, or until it ends; whether it did."""
        until = self.now + seconds
        while self.now < until:
            self.seconds.append(await self.look())
            share = fertile_share(self.seconds)
            self._progress.update(f"rates {self.seconds[-1].rate_pages}, fertile {share:.0%}")
            if ends():
                return True
            await asyncio.sleep(max(0.0, 1.0 - self.now % 1.0))
        return False


def measure(build: Path, progress: Progress) -> Result:
    """Record all three parts."""
    with ExitStack() as stack:
        # Paths of sockets are short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memshare-")))
        folder.chmod(0o755)
        (folder / "qmp").mkdir()
        stack.enter_context(open_broker(build / "qemu-plugin" / "broker" / "memshared", folder))
        cgroup = stack.enter_context(limited(UNLIMITED_BYTES))
        return asyncio.run(record(build, folder, cgroup, progress))


async def record(build: Path, folder: Path, cgroup: MemoryCgroup, progress: Progress) -> Result:
    """Start guests and daemon, and record."""
    facts = machine_facts() | {"budget_cpu_ratio": BUDGET_CPU_RATIO, "trail_seconds": TRAIL_SECONDS}
    async with AsyncExitStack() as stack:
        guests = await stack.enter_async_context(open_guests(folder, build, cgroup))
        progress.update("guests fill their memory")
        await asyncio.gather(
            *(guest.tell("f" if guest.name in FERTILE else "b") for guest in guests)
        )
        config = configuration(
            folder,
            folder / "control.sock",
            "default",
            cgroup=cgroup.path,
            more=f"[policy]\nbudget-cpu-ratio = {BUDGET_CPU_RATIO}\n",
        )
        await stack.enter_async_context(open_daemon(folder, config))
        socket = folder / SOCKET
        recording = Recording(guests, progress)
        await recording.go_on(SHARE_BAR_SECONDS)
        share = fertile_share(recording.seconds)

        turned_at = recording.now
        await guests[GUESTS.index(BARREN[0])].tell("f")
        is_fair = await recording.go_on(
            2 * FAIR_BAR_SECONDS,
            lambda: (
                trailing(recording.seconds, BARREN[:1])
                >= FAIR_RATIO * trailing(recording.seconds, FERTILE)
            ),
        )
        fair_seconds = recording.now - turned_at if is_fair else None

        await recording.go_on(10)
        squeezed_at = recording.now
        cgroup.limit(read_cgroup(cgroup.path).used_bytes + SQUEEZED_BYTES)
        totals, decided, view = [], None, {}
        while recording.now < squeezed_at + SQUEEZE_SECONDS:
            second = await recording.look()
            recording.seconds.append(second)
            totals.append((second.at_seconds - squeezed_at, sum(second.rate_pages)))
            view = (await ask(socket, "view"))["view"]
            if decided is None and view["urgency"] == 1:
                decided = sum(view["rates"].values())
        if decided is None:
            raise MemshareError(f"the squeeze was not noticed: {view['cause']}")
        # Later they rise on: what is scanned at full speed costs less a page than what was scanned before.
        full_seconds = next((at for at, total in totals if total >= FULL_RATIO * decided), None)
        return Result(
            case="steering",
            guests=list(GUESTS),
            fertile_share=share,
            seconds_to_fair=fair_seconds,
            seconds_to_full=full_seconds,
            turned_at_seconds=turned_at,
            squeezed_at_seconds=squeezed_at,
            seconds=recording.seconds,
            facts=facts,
        )


def misses(result: Result) -> list[str]:
    """Return the bars that were missed. Pure."""
    found = []
    if result.fertile_share < SHARE_BAR:
        found.append(
            f"fertile guests: {result.fertile_share:.0%} of what is scanned, not {SHARE_BAR:.0%}"
        )
    if result.seconds_to_fair is None or result.seconds_to_fair > FAIR_BAR_SECONDS:
        found.append(f"the guest that turned had no fair part within {FAIR_BAR_SECONDS:.0f} s")
    if result.seconds_to_full is None or result.seconds_to_full > SQUEEZE_BAR_SECONDS:
        found.append(f"no full rate within {SQUEEZE_BAR_SECONDS:.0f} s of the squeeze")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(*, json_file: Path | None) -> None:
    """Record how the daemon steers six guests; exit 1 when a bar is missed. Takes three minutes at most."""
    build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build"))
    with session(json_file) as progress:
        result = measure(build, progress)
    print(
        f"fertile guests had {result.fertile_share:.1%} of what was scanned; fair after "
        f"{result.seconds_to_fair or float('nan'):.1f} s; full rate after {result.seconds_to_full or float('nan'):.2f} s"
    )
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench steering")
