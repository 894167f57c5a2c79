# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench comeback`: how soon guests share again whose broker was killed. Needs root.

Debian guests fill RAM with files, share at the plugin's default rate until nothing moves any more, and are
counted: the savings before. Then the broker gets SIGKILL and another one is started on its sockets, as a
supervisor would. Until the guests share in the new store and nobody holds the old one any more they verify their
files without a pause. Counted again by page tables, and once more by contents.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import oracle
from memshare.bench.fleet import (
    BOOT_SECONDS,
    RAM_BYTES,
    Fleet,
    Guest,
    ask_all,
    at_rest,
    build_image,
    open_fleet,
    read_stats,
    tell,
    verify,
)
from memshare.bench.progress import Progress
from memshare.bench.rig import SOURCE, finish, machine_facts, session
from memshare.cli import run
from memshare.clients import procfs
from memshare.errors import HostError, MeasurementError, MemshareError

KEPT_RATIO_BAR = 0.95
SECONDS_BAR = 300.0
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 300.0
SETTLED_RATIO = 0.002  # growth of the savings over two passes under which they count as settled


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds count from SIGKILL. Savings are by page tables, guests stopped."""

    guests: int
    saved_before_bytes: int
    saved_after_bytes: int
    kept_ratio: float
    store_before_bytes: int
    store_after_bytes: int
    shared_again_seconds: float
    old_store_gone_seconds: float
    shmem_most_bytes: int
    integrity: str
    kernel: str
    cpu_model: str
    load_before: float


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


async def count(
    fleet: Fleet, memories: Sequence[oracle.GuestMemory]
) -> tuple[oracle.Reckoning, oracle.Store]:
    """Stop guests and engines, count, and let all go on."""
    (rate,) = {stats.scan_rate_pages for stats in await read_stats(fleet.guests)}
    await tell(fleet.guests, "stop")
    try:
        await tell(fleet.guests, scan_rate=0)
        await at_rest(fleet.guests)
        return oracle.reckon_now(memories, fleet.broker_pid)
    finally:
        await tell(fleet.guests, scan_rate=rate)
        await tell(fleet.guests, "cont")


async def claimed_bytes(guests: Sequence[Guest]) -> int:
    """Return what the engines say that equal contents save."""
    return sum(stats.saved_content_bytes for stats in await read_stats(guests))


def holds(pid: int, files: frozenset[tuple[str, int]]) -> bool:
    """Whether a process maps one of these files, or has it open."""
    if files & set(procfs.file_mappings(pid).files):
        return True
    inodes = {inode for _, inode in files}
    folder = procfs.PROC / str(pid) / "fd"
    return any(_inode(folder / name) in inodes for name in os.listdir(folder))


def _inode(descriptor: Path) -> int | None:
    try:
        return descriptor.stat().st_ino if "memfd:" in os.readlink(descriptor) else None
    except FileNotFoundError:  # closed meanwhile
        return None


async def come_back(
    fleet: Fleet, old: frozenset[tuple[str, int]], saved_before: int, progress: Progress
) -> tuple[float, float, int]:
    """Kill the broker and start another. Returns when savings were back, when the old store was gone, most Shmem."""
    killed = time.monotonic()
    await fleet.kill_broker()
    await fleet.start_broker()
    shared_again = gone = None
    shmem_most = 0
    while shared_again is None or gone is None:
        seconds = time.monotonic() - killed
        if seconds > 2 * SECONDS_BAR:
            raise MeasurementError(
                f"{seconds:.0f} s after the broker was killed "
                + ("the old store is still held" if shared_again else "savings are not back")
            )
        shmem_most = max(shmem_most, procfs.meminfo()["Shmem"])
        if gone is None and not any(holds(guest.pid, old) for guest in fleet.guests):
            gone = seconds
        claimed = await claimed_bytes(fleet.guests)
        # Net of what is still mapped from the old store.
        if shared_again is None and claimed >= KEPT_RATIO_BAR * saved_before:
            shared_again = seconds
        progress.update(
            f"{seconds:.0f} s after SIGKILL: {claimed >> 20} of {saved_before >> 20} MiB saved, "
            f"old store {'held' if gone is None else 'gone'}"
        )
        await asyncio.sleep(LOOK_SECONDS)
    return shared_again, gone, shmem_most


async def measure(build: Path, image: Path, guests: int, progress: Progress) -> Result:
    """Do the whole of it."""
    facts = machine_facts()
    async with open_fleet(build, image) as fleet:
        await fleet.start_broker()
        for number in range(guests):
            await fleet.start_guest(f"guest{number}", RAM_BYTES, "mode=off")
        await boot(fleet, progress)
        progress.update("each guest fills 64 MiB of files")
        expected = await ask_all(fleet.guests, "fill common")
        memories = [oracle.GuestMemory(guest.pid, RAM_BYTES) for guest in fleet.guests]
        oracle.look(memories)
        await tell(fleet.guests, mode="content")
        await settled(fleet, memories, progress)
        before, store_before = await count(fleet, memories)
        claimed = await claimed_bytes(fleet.guests)
        problems: list[str] = []
        done = asyncio.Event()

        async def keep_verifying() -> None:
            while not done.is_set() and not problems:
                problems.extend(await verify(fleet.guests, expected))

        async with asyncio.TaskGroup() as group:
            group.create_task(keep_verifying())
            try:
                again, gone, most = await come_back(fleet, store_before.files, claimed, progress)
            finally:
                done.set()
        after, store_after = await count(fleet, memories)
        problems += await verify(fleet.guests, expected)
    return Result(
        guests=guests,
        saved_before_bytes=before.freed * oracle.PAGE_BYTES,
        saved_after_bytes=after.freed * oracle.PAGE_BYTES,
        kept_ratio=round(after.freed / max(1, before.freed), 4),
        store_before_bytes=store_before.allocated_bytes,
        store_after_bytes=store_after.allocated_bytes,
        shared_again_seconds=round(again, 1),
        old_store_gone_seconds=round(gone, 1),
        shmem_most_bytes=most,
        integrity="; ".join(dict.fromkeys(problems)) or "ok",
        **facts,
    )


def misses(result: Result) -> list[str]:
    """What is not as it must be. Pure."""
    found = []
    if result.integrity != "ok":
        found.append(f"integrity: {result.integrity}")
    if result.kept_ratio < KEPT_RATIO_BAR:
        found.append(f"{result.kept_ratio:.1%} of the savings are back, not {KEPT_RATIO_BAR:.0%}")
    seconds = max(result.shared_again_seconds, result.old_store_gone_seconds)
    if seconds > SECONDS_BAR:
        found.append(f"it took {seconds:.0f} s, not {SECONDS_BAR:.0f}")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--guests", type=click.IntRange(2, 64), default=4, show_default=True)
def main(*, json_file: Path | None, guests: int) -> None:
    """Kill the broker of guests that share, and see how soon they share again, at default rates.

    Needs root. Exit 1 when less than 95% of the savings come back, or not within 5 minutes, or a guest reads
    wrong bytes.
    """
    with session(json_file) as progress:
        build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build"))
        image = build_image([str(SOURCE / "guests" / "linux" / "build.sh")])
        result = asyncio.run(measure(build, image, guests, progress))
    print(
        f"{result.guests} guests, savings {result.saved_before_bytes >> 20} MiB before and "
        f"{result.saved_after_bytes >> 20} MiB after: {result.kept_ratio:.1%}; shared again in "
        f"{result.shared_again_seconds:.0f} s, old store gone in {result.old_store_gone_seconds:.0f} s"
    )
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench comeback")
