# SPDX-License-Identifier: GPL-2.0-or-later
"""Two real Debian guests share their memory while devices of one of them change it behind the engine.

One pair of guests for all, booted once. Guest a wipes what it frees (init_on_free=1), has three disks with
direct I/O (one for each way that QEMU has), and memory may be plugged into it. Each test begins and ends with
sharing off. Root.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tests.lib import guests
from tests.lib.broker import build_directory
from tests.lib.fleet import (
    DISK_BYTES,
    disks,
    drive,
    execute,
    has_no_slots,
    stats_when,
    store_mappings,
)
from tests.lib.slowdisk import SlowDisk, slow_disk
from tests.lib.vm import VmError, until

from memshare.bench import oracle
from memshare.bench.fleet import ANSWER_SECONDS, RAM_BYTES, Guest, open_fleet, read_stats, tell
from memshare.errors import MemshareError

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.full_hash,
    pytest.mark.timeout(900),
]

BALLOON_BYTES = 24 << 20
DIMM_BYTES = 128 << 20
HELD_SECONDS = 4.0  # several times what it takes to make all memory plain where nothing is pinned


class Pair(guests.Pair):
    """With the disk of guest a that can be held."""

    def __init__(self, pair: guests.Pair, slow: SlowDisk) -> None:
        super().__init__(pair.fleet, pair.expected)
        self.slow = slow


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def booted(image: Path) -> AsyncIterator[Pair]:
    """Boot the two guests and have them write their files, sharing off."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(build_directory(), image))
        slow = stack.enter_context(slow_disk(fleet.folder, DISK_BYTES))
        await fleet.start_broker()
        await fleet.start_guest(
            "a",
            RAM_BYTES,
            "mode=off,scan-rate=0",
            arguments=[
                *disks(fleet.folder, "a"),
                *drive(slow.path, "threads"),
                "-m",
                f"{RAM_BYTES >> 20}M,slots=4,maxmem=4G",
            ],
            kernel_options="init_on_free=1 memhp_default_state=online_movable",
        )
        await fleet.start_guest("b", RAM_BYTES, "mode=off,scan-rate=0")
        yield Pair(await guests.boot_pair(fleet), slow)


@pytest.fixture
def pair(booted: Pair) -> Pair:
    """The two guests; the files of guest a may have been written anew since."""
    booted.find_files()
    return booted


async def drained(pair: Pair) -> None:
    """Stop sharing and wait for plain memory."""
    await tell(pair.guests, mode="off")
    for guest, memory in zip(pair.guests, pair.memories, strict=True):
        await stats_when(guest, lambda stats: stats.state == "off" and has_no_slots(stats))
        assert not store_mappings(guest, memory)


@asynccontextmanager
async def loaded(pair: Pair, request: str) -> AsyncIterator[None]:
    """Have guest a do something again and again, and both verify in between, during the block."""
    done = asyncio.Event()
    rounds = 0

    async def keep_loading() -> None:
        nonlocal rounds
        while not done.is_set():
            await pair.guests[0].ask(request, ANSWER_SECONDS)
            await pair.verify()
            rounds += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(keep_loading())
        yield
        begun = rounds
        await until(lambda: asyncio.sleep(0, rounds), lambda now: now > begun, ANSWER_SECONDS)
        done.set()


def is_read(slow: SlowDisk, guest: Guest) -> Callable[[], Awaitable[bool]]:
    """Ask whether a guest's QEMU waits for what it reads from a disk."""

    async def look() -> bool:
        return slow.is_read_by(guest.pid)

    return look


async def test_I1_I12_direct_io_while_sharing_and_while_it_is_drained(pair: Pair) -> None:
    async with loaded(pair, "disks 2"):
        await pair.start_sharing()
        broken = await stats_when(pair.guests[0], lambda stats: stats.broken_pages > 0)
        assert broken.state == "running"
        await drained(pair)
    await pair.verify()
    assert not pair.shared_files().any()


async def test_I1_memory_that_a_disk_has_pinned_is_not_copied(pair: Pair) -> None:
    guest, memory = pair.guests[0], pair.memories[0]
    await pair.share()
    await guest.ask("disks 1", ANSWER_SECONDS)
    # What held the disk's contents is freed, and written to again by the disk.
    pair.slow.hold()
    reading = asyncio.ensure_future(guest.ask("reread", ANSWER_SECONDS))
    try:
        await until(is_read(pair.slow, guest), bool)
        await tell(pair.guests, mode="off")

        async def store_is_left() -> bool:
            return bool(store_mappings(guest, memory))

        with pytest.raises(VmError):
            await until(store_is_left, lambda is_left: not is_left, HELD_SECONDS)
    finally:
        pair.slow.let_go()
    assert await reading == "reread"
    await drained(pair)
    await pair.verify()


async def plug_balloon(guest: Guest, *, reporting: bool) -> None:
    """Plug a balloon."""
    await execute(
        guest,
        "device_add",
        driver="virtio-balloon-pci",
        id="balloon",
        free_page_reporting=reporting,
    )


async def unplug(guest: Guest, device: str) -> None:
    """Ask the guest to let go of a device, and wait until it has."""

    async def is_gone() -> bool:
        # A guest that is busy with something may miss the first time.
        with contextlib.suppress(MemshareError):
            await execute(guest, "device_del", id=device)
        listed = await execute(guest, "qom-list", path="/machine/peripheral")
        return all(entry["name"] != device for entry in listed)

    await until(is_gone, bool, ANSWER_SECONDS)


async def balloon_to(guest: Guest, ram_bytes: int) -> None:
    """Have the guest give memory away, or take it back, until it has so much."""

    async def actual() -> int:
        with contextlib.suppress(MemshareError):  # the guest has not seen its balloon yet
            await execute(guest, "balloon", value=ram_bytes)
        return int((await execute(guest, "query-balloon"))["actual"])

    await until(actual, lambda now: now == ram_bytes, ANSWER_SECONDS)


@pytest.mark.slow
async def test_I1_a_balloon_inflates_and_deflates_while_the_guest_shares(pair: Pair) -> None:
    guest = pair.guests[0]
    await plug_balloon(guest, reporting=False)
    await pair.share()
    for _ in range(2):
        async with pair.verifying(*pair.guests):
            await balloon_to(guest, RAM_BYTES - BALLOON_BYTES)
        async with pair.verifying(*pair.guests):
            await balloon_to(guest, RAM_BYTES)
        assert await guest.ask("zeros 24", ANSWER_SECONDS) == "24"
    assert (await read_stats([guest]))[0].refusal == ""
    assert pair.shared_files().mean() > 0
    await unplug(guest, "balloon")
    await drained(pair)


@pytest.mark.slow
async def test_I1_reported_free_pages_read_as_zeros_when_a_balloon_comes_while_the_guest_shares(
    pair: Pair,
) -> None:
    """Pages that were shared and then wiped are the first to be reported."""
    guest = pair.guests[0]
    await pair.share()
    await plug_balloon(guest, reporting=True)
    await guest.ask("drop", ANSWER_SECONDS)
    for _ in range(4):
        assert await guest.ask("zeros 64", ANSWER_SECONDS) == "64"
    stats = await stats_when(guest, has_no_slots)
    assert (stats.mode, stats.state) == ("zero", "running")
    assert "free page reporting" in stats.refusal

    pair.expected[0] = await guest.ask("fill common", ANSWER_SECONDS)
    await pair.verify()
    await unplug(guest, "balloon")
    await drained(pair)
    pair.find_files()
    await pair.share()
    await drained(pair)


@pytest.mark.slow
async def test_I1_a_dimm_comes_and_goes_while_the_guest_shares_it(pair: Pair) -> None:
    guest = pair.guests[0]
    await pair.share()
    await execute(
        guest, "object-add", **{"qom-type": "memory-backend-ram"}, id="m", size=DIMM_BYTES
    )
    dimm = oracle.GuestMemory(guest.pid, DIMM_BYTES)
    await execute(guest, "device_add", driver="pc-dimm", id="dimm", memdev="m")
    await stats_when(guest, lambda stats: stats.ram_bytes == RAM_BYTES + DIMM_BYTES)
    await guest.ask("plugged", ANSWER_SECONDS)
    # Movable memory is taken first: the files are in the DIMM now.
    await guest.ask("drop", ANSWER_SECONDS)
    pair.expected[0] = await guest.ask("fill common", ANSWER_SECONDS)

    async def shared_pages() -> int:
        (table,) = oracle.look([dimm])
        return int(table.store.sum())

    async with pair.verifying(*pair.guests):
        await until(shared_pages, lambda pages: pages > guests.FILE_PAGES // 2, ANSWER_SECONDS)
    async with pair.verifying(pair.guests[1]):
        await unplug(guest, "dimm")
        await execute(guest, "object-del", id="m")
        await stats_when(guest, lambda stats: stats.ram_bytes == RAM_BYTES)
    await pair.verify()
    await drained(pair)


@pytest.mark.slow
async def test_I1_virtio_mem_is_plugged_and_unplugged_while_zero_pages_are_given_back(
    pair: Pair,
) -> None:
    guest = pair.guests[0]
    await pair.share()
    await execute(
        guest, "object-add", **{"qom-type": "memory-backend-ram"}, id="v", size=DIMM_BYTES
    )
    await execute(guest, "device_add", driver="virtio-mem-pci", id="vm", memdev="v")
    stats = await stats_when(guest, lambda stats: stats.mode == "zero" and has_no_slots(stats))
    assert "virtio-mem" in stats.refusal

    async def plugged_bytes() -> int:
        (device,) = await execute(guest, "query-memory-devices")
        return int(device["data"]["size"])

    async def plug(length_bytes: int) -> None:
        device = {"path": "/machine/peripheral/vm", "property": "requested-size"}
        await execute(guest, "qom-set", **device, value=length_bytes)
        await until(plugged_bytes, lambda now: now == length_bytes, ANSWER_SECONDS)

    async with pair.verifying(*pair.guests):
        await plug(DIMM_BYTES)
    await guest.ask("plugged", ANSWER_SECONDS)
    await guest.ask("drop", ANSWER_SECONDS)
    pair.expected[0] = await guest.ask("fill common", ANSWER_SECONDS)
    await pair.verify()
    await stats_when(guest, lambda stats: stats.zero_pages > 0)
    async with pair.verifying(pair.guests[1]):
        await plug(0)
    await pair.verify()
    await drained(pair)
