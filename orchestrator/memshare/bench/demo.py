# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, `./dev demo`: Debian guests share their memory, and every figure is checked.

Boots the guests cold with sharing off, has each fill 64 MiB of RAM with files, measures; switches
sharing on, waits until it settles while the guests verify their files, measures again; then one guest
overwrites half of its files and all verify once more. Writes out/demo/result.json.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from memshare.bench import oracle
from memshare.bench.cost import Cost, memory_used_bytes, overhead_bytes, read_cost
from memshare.bench.fleet import AgentError, Fleet, Guest, build_image, open_fleet
from memshare.bench.progress import Progress
from memshare.cli import run
from memshare.clients import procfs
from memshare.errors import HostError, MeasurementError, MemshareError
from memshare.model import PageStats
from memshare.render import Column, Unit, render_table

SOURCE = Path(__file__).resolve().parents[3]
RAM_BYTES = 256 << 20
SCAN_RATE_PAGES = (
    100_000  # per second and guest: the whole of it in under a second, if CPU is there
)
BOOT_SECONDS = 240.0
ANSWER_SECONDS = 120.0
SETTLE_SECONDS = 150.0
LOOK_SECONDS = 0.5
SETTLED_RATIO = 0.002  # growth of the savings over two passes under which they count as settled

ORACLE_RATIO_BAR = 0.80
IDENTITY_RATIO_BAR = 0.02


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What result.json holds. Figures are of the moment when sharing had settled."""

    guests: int
    ram_given_bytes: int
    memory_used_before_bytes: int
    memory_used_bytes: int
    frames_freed_bytes: int
    oracle_bytes: int
    saved_zero_bytes: int
    saved_content_bytes: int
    overhead_bytes: int
    overcommit_ratio_off: float
    overcommit_ratio: float
    scan_cpu_seconds: float
    integrity: str


class Measure(NamedTuple):
    """All that is read at one moment, guests stopped."""

    reckoning: oracle.Reckoning
    store: oracle.Store
    cost: Cost
    stats: list[PageStats]
    broker_cpu_seconds: float

    @property
    def claimed_zero_bytes(self) -> int:
        """What the engines say that zero pages save."""
        return sum(stats.saved_zero_bytes for stats in self.stats)

    @property
    def claimed_content_bytes(self) -> int:
        """What the engines say that equal contents save."""
        return sum(stats.saved_content_bytes for stats in self.stats)

    @property
    def freed_bytes(self) -> int:
        """What page tables say was freed."""
        return self.reckoning.freed * oracle.PAGE_BYTES

    @property
    def oracle_bytes(self) -> int:
        """What could be freed at most."""
        return self.reckoning.oracle * oracle.PAGE_BYTES

    @property
    def scan_cpu_seconds(self) -> float:
        """CPU time of all engine threads and of the broker."""
        return sum(stats.scan_cpu_ns for stats in self.stats) / 1e9 + self.broker_cpu_seconds


async def read_stats(guests: Sequence[Guest]) -> list[PageStats]:
    """Ask all engines at once."""

    async def one(guest: Guest) -> PageStats:
        async with guest.monitor() as monitor:
            return await monitor.stats()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(guest)) for guest in guests]
    return [task.result() for task in tasks]


async def tell(
    guests: Sequence[Guest], command: str | None = None, **properties: str | int
) -> None:
    """Set properties of all engines, or give all monitors a command such as `stop`."""
    for guest in guests:
        async with guest.monitor() as monitor:
            for name, value in properties.items():
                await monitor.set(name.replace("_", "-"), value)
            if command is not None:
                await monitor.execute(command)


async def ask_all(guests: Sequence[Guest], request: str) -> list[str]:
    """Have all guests do something at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(guest.ask(request, ANSWER_SECONDS)) for guest in guests]
    return [task.result() for task in tasks]


async def verify(guests: Sequence[Guest], expected: Sequence[str]) -> list[str]:
    """All guests read their files; return what is not as noted outside of them."""

    async def one(guest: Guest, wanted: str) -> list[str]:
        try:
            found = await guest.ask("verify", ANSWER_SECONDS)
        except AgentError as error:
            return [str(error)]
        return [] if found == wanted else [f"guest {guest.name}: sums differ from those noted"]

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(guest, wanted))
            for guest, wanted in zip(guests, expected, strict=True)
        ]
    return [problem for task in tasks for problem in task.result()]


async def measure(fleet: Fleet, memories: Sequence[oracle.GuestMemory], *, settle: bool) -> Measure:
    """Stop the guests, let the engines come to rest, count, and let the guests go on."""
    await tell(fleet.guests, "stop")
    try:
        if settle:
            await passes(fleet.guests, 2)
            await tell(fleet.guests, scan_rate=0)
            await at_rest(fleet.guests)
        reckoning, store = oracle.reckon_now(memories, fleet.broker_pid)
        found = Measure(
            reckoning=reckoning,
            store=store,
            cost=read_cost(memories, fleet.broker_pid, store),
            stats=await read_stats(fleet.guests),
            broker_cpu_seconds=procfs.cpu_seconds(fleet.broker_pid),
        )
        if problem := disagreement(found):
            raise MeasurementError(problem)
        return found
    finally:
        if settle:
            await tell(fleet.guests, scan_rate=SCAN_RATE_PAGES)
        await tell(fleet.guests, "cont")


async def passes(guests: Sequence[Guest], wanted: int) -> None:
    """Wait until each engine has visited everything so many more times."""
    start = [stats.passes for stats in await read_stats(guests)]
    async with asyncio.timeout(SETTLE_SECONDS):
        while any(
            stats.passes < first + wanted + 1
            for stats, first in zip(await read_stats(guests), start, strict=True)
        ):
            await asyncio.sleep(0.1)


async def at_rest(guests: Sequence[Guest]) -> None:
    """Wait until all engines are paused and their figures stand still."""
    last = None
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            now = await read_stats(guests)
            figures = [(s.shared_pages, s.zero_pages, s.saved_content_bytes) for s in now]
            if figures == last and all(stats.state == "paused" for stats in now):
                return
            last = figures
            await asyncio.sleep(0.2)


async def settled(fleet: Fleet, memories: Sequence[oracle.GuestMemory], progress: Progress) -> None:
    """Wait until two more passes of all engines save next to nothing more."""
    started = time.monotonic()
    saved_then, passes_then = 0, [0] * len(fleet.guests)
    while True:
        now = await read_stats(fleet.guests)
        for guest, stats in zip(fleet.guests, now, strict=True):
            if stats.refusal:
                raise HostError(f"guest {guest.name} does not share: {stats.refusal}")
        saved = sum(stats.saved_content_bytes + stats.saved_zero_bytes for stats in now)
        progress.update(
            f"merging: {saved >> 20} MiB saved, {sum(s.shared_pages for s in now)} pages shared, "
            f"{min(s.passes for s in now)} passes"
        )
        if all(s.passes >= then + 2 for s, then in zip(now, passes_then, strict=True)):
            if saved and saved - saved_then <= SETTLED_RATIO * saved and min(passes_then) > 0:
                return
            saved_then, passes_then = saved, [stats.passes for stats in now]
        if time.monotonic() - started > SETTLE_SECONDS:
            states = ", ".join(sorted({stats.state for stats in now}))
            raise MemshareError(
                f"sharing did not settle in {SETTLE_SECONDS:.0f} s ({states}; {saved} bytes saved)"
            )
        oracle.look(memories)  # so that no page is missed that is touched and then given back
        await asyncio.sleep(LOOK_SECONDS)


async def share(
    fleet: Fleet,
    memories: Sequence[oracle.GuestMemory],
    expected: Sequence[str],
    progress: Progress,
) -> list[str]:
    """Switch sharing on and wait for it, while the guests verify without a pause.

    Returns what they found wrong.
    """
    problems: list[str] = []

    async def keep_verifying(done: asyncio.Event) -> None:
        while not done.is_set() and not problems:
            problems.extend(await verify(fleet.guests, expected))

    await tell(fleet.guests, mode="content", scan_rate=SCAN_RATE_PAGES)
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_verifying(done))
        try:
            await settled(fleet, memories, progress)
        finally:
            done.set()
    return problems


async def demo(build: Path, image: Path, guests: int, progress: Progress) -> Result:
    """Do the whole job and return its figures."""
    async with open_fleet(build, image) as fleet:
        progress.update("starting the broker")
        await fleet.start_broker()
        for number in range(guests):
            await fleet.start_guest(f"guest{number}", RAM_BYTES, "mode=off,scan-rate=0")
        await boot(fleet, progress)

        progress.update("each guest fills 64 MiB of files")
        expected = await ask_all(fleet.guests, "fill common")
        if len(set(expected)) != 1:
            raise MeasurementError("guests made different files from one seed")
        problems = await verify(fleet.guests, expected)
        progress.update("measuring with sharing off")
        memories = [oracle.GuestMemory(guest.pid, RAM_BYTES) for guest in fleet.guests]
        before = await measure(fleet, memories, settle=False)

        problems += await share(fleet, memories, expected, progress)
        progress.update("measuring with sharing on")
        now = await measure(fleet, memories, settle=True)
        progress.update("all verify; one overwrites half of its files; all verify again")
        problems += await verify(fleet.guests, expected)
        expected[0] = await fleet.guests[0].ask("overwrite other", ANSWER_SECONDS)
        problems += await verify(fleet.guests, expected)
        progress.update("measuring after the overwrite")
        later = await measure(fleet, memories, settle=True)
        problems += await verify(fleet.guests, expected)
        integrity = "; ".join(dict.fromkeys(problems)) or "ok"
        progress.update("stopping guests and broker")
        result = make_result(before, now, integrity)
        progress.end()
        show(result, before, now, later)
        return result


async def boot(fleet: Fleet, progress: Progress) -> None:
    """Wait for all guests, telling how many are up."""
    up = 0

    async def one(guest: Guest) -> None:
        nonlocal up
        await guest.boot(BOOT_SECONDS)
        up += 1
        progress.update(f"booting: {up} of {len(fleet.guests)} guests are up")

    progress.update(f"booting {len(fleet.guests)} Debian guests under TCG")
    async with asyncio.TaskGroup() as group:
        for guest in fleet.guests:
            group.create_task(one(guest))


def make_result(before: Measure, now: Measure, integrity: str) -> Result:
    """Put the figures together. Pure."""
    guests = len(now.stats)
    ram_given = guests * RAM_BYTES
    overhead = overhead_bytes(
        before.cost, now.cost, sum(stats.overhead_bytes for stats in before.stats), guests
    )
    used_before = before.cost.ram_pss_bytes
    used = memory_used_bytes(now.cost, now.store) + overhead
    return Result(
        guests=guests,
        ram_given_bytes=ram_given,
        memory_used_before_bytes=used_before,
        memory_used_bytes=used,
        frames_freed_bytes=now.freed_bytes,
        oracle_bytes=now.oracle_bytes,
        saved_zero_bytes=now.claimed_zero_bytes,
        saved_content_bytes=now.claimed_content_bytes,
        overhead_bytes=overhead,
        overcommit_ratio_off=round(ram_given / used_before, 3),
        overcommit_ratio=round(ram_given / used, 3),
        scan_cpu_seconds=round(now.scan_cpu_seconds, 2),
        integrity=integrity,
    )


def disagreement(measure: Measure) -> str | None:
    """Tell when PSS and page frames give different sums for what is behind guests' RAM. Pure."""
    used = memory_used_bytes(measure.cost, measure.store)
    frames = measure.reckoning.frames * oracle.PAGE_BYTES
    if abs(used - frames) > IDENTITY_RATIO_BAR * frames:
        return f"by PSS {used} bytes are behind guests' RAM, by page frames {frames}"
    return None


def misses(result: Result) -> list[str]:
    """What the result falls short of. Pure."""
    problems = []
    if result.integrity != "ok":
        problems.append(f"integrity: {result.integrity}")
    if result.frames_freed_bytes < ORACLE_RATIO_BAR * result.oracle_bytes:
        share = result.frames_freed_bytes / result.oracle_bytes
        problems.append(f"freed {share:.1%} of what could be freed, not {ORACLE_RATIO_BAR:.0%}")
    claimed = result.saved_zero_bytes + result.saved_content_bytes
    off_by = abs(claimed - result.frames_freed_bytes)
    if off_by > IDENTITY_RATIO_BAR * result.frames_freed_bytes:  # I10
        problems.append(
            f"the engines claim {claimed} bytes saved, page tables show {result.frames_freed_bytes}"
        )
    return problems


def show(result: Result, before: Measure, now: Measure, later: Measure) -> None:
    """Print the table."""
    columns = (
        Column("figure", ""),
        Column("off", "SHARING OFF", Unit.BYTES),
        Column("on", "ON", Unit.BYTES),
        Column("later", "AFTER OVERWRITE", Unit.BYTES),
    )
    after = make_result(before, later, result.integrity)

    def row(figure: str, off: int | None, name: str) -> dict[str, int | str | None]:
        return {
            "figure": figure,
            "off": off,
            "on": getattr(result, name),
            "later": getattr(after, name),
        }

    def ratio(one: Result) -> str:
        return f"{one.frames_freed_bytes / max(1, one.oracle_bytes):.1%}"

    def times(value: float) -> str:
        return f"{value:.2f}x"

    rows: list[dict[str, int | str | None]] = [
        row(f"RAM given to {result.guests} guests", result.ram_given_bytes, "ram_given_bytes"),
        row("memory used", result.memory_used_before_bytes, "memory_used_bytes"),
        {
            "figure": "overcommit ratio",
            "off": times(result.overcommit_ratio_off),
            "on": times(result.overcommit_ratio),
            "later": times(after.overcommit_ratio),
        },
        row("frames freed", 0, "frames_freed_bytes"),
        row("most that could be freed", before.oracle_bytes, "oracle_bytes"),
        {"figure": "freed of that", "on": ratio(result), "later": ratio(after)},
        row("saved, zero pages (claimed)", 0, "saved_zero_bytes"),
        row("saved, equal contents (claimed)", 0, "saved_content_bytes"),
        row("overhead", 0, "overhead_bytes"),
        {
            "figure": "scan CPU so far",
            "on": f"{result.scan_cpu_seconds:.1f} s",
            "later": f"{after.scan_cpu_seconds:.1f} s",
        },
        {"figure": "integrity", "on": result.integrity},
    ]
    render_table(columns, rows, sys.stdout)
    grown = (now.reckoning.held - before.reckoning.held) * oracle.PAGE_BYTES
    print(f"guests touched {grown >> 10} KiB of new memory between off and on")


async def cancellable(build: Path, image: Path, guests: int, progress: Progress) -> Result:
    """Run the demo so that SIGTERM ends it as Ctrl-C does: guests and broker first."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await demo(build, image, guests, progress)


@click.command()
@click.option("--guests", type=click.IntRange(2, 64), default=4, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=SOURCE / "out" / "demo")
def main(guests: int, output: Path) -> None:
    """Run the demo; exit 0 only when integrity holds and the figures meet their bars."""
    if os.geteuid() != 0:
        raise HostError(
            "the demo needs root: it reads page tables and starts guests as another user"
        )
    build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build"))
    image = build_image([str(SOURCE / "guests" / "linux" / "build.sh")])
    progress = Progress()
    result_file = output / "result.json"
    result_file.unlink(missing_ok=True)  # an old one must not pass for this run's
    try:
        result = asyncio.run(cancellable(build, image, guests, progress))
    finally:
        progress.end()
    output.mkdir(parents=True, exist_ok=True)
    result_file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(f"written: {result_file}")
    if problems := misses(result):
        raise MeasurementError("; ".join(problems))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev demo")
