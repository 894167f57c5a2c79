# SPDX-License-Identifier: GPL-2.0-or-later
"""memtest86+ finds no error in guests that share, and does find one that is made. Root.

`./dev judges` runs the whole of it, and more judges.
"""

import os
from pathlib import Path

import pytest
from tests.lib.broker import Broker
from tests.lib.judges import Memtest, State, judge_sharing_guests
from tests.lib.payload import sharing
from tests.lib.vm import Vm, running, until

from memshare.bench import oracle
from memshare.bench.fleet import build_image
from memshare.bench.rig import SOURCE

pytestmark = pytest.mark.full_hash

#: Unlike any other memory that QEMU has for a guest.
MEMORY_MIB = 20
MERGED_PAGES_BAR = 1000
DEADLINE_SECONDS = 600.0
WAITING_TEST = 10


@pytest.fixture(scope="module")
def memtest() -> Memtest:
    """All of its first pass but the test that waits for minutes."""
    folder = build_image([str(SOURCE / "guests" / "judges" / "build.sh")])
    return Memtest(folder, MEMORY_MIB, last_test=WAITING_TEST - 1)


@pytest.mark.slow
@pytest.mark.timeout(DEADLINE_SECONDS + 60)
async def test_I1_memtest_finds_no_error_while_its_pages_are_merged(
    broker: Broker, memtest: Memtest
) -> None:
    verdict = await judge_sharing_guests(memtest, sharing(broker), DEADLINE_SECONDS)
    assert verdict.errors == 0
    assert verdict.merged_pages >= MERGED_PAGES_BAR
    assert verdict.breaks >= MERGED_PAGES_BAR


def spoil(vm: Vm) -> None:
    """Change a byte in the middle of the guest's memory."""
    start = oracle.GuestMemory(vm.pid, MEMORY_MIB << 20).start
    with open(f"/proc/{vm.pid}/mem", "r+b", buffering=0) as memory:
        at = start + (MEMORY_MIB << 19)
        (byte,) = os.pread(memory.fileno(), 1, at)
        os.pwrite(memory.fileno(), bytes([byte ^ 1]), at)


async def test_memtest_finds_a_byte_that_was_changed(memtest: Memtest, tmp_path: Path) -> None:
    async def look() -> State:
        state = await memtest.look(vm, tmp_path)
        if state.says != "begins":
            spoil(vm)
        return state

    async with running(*memtest.arguments(tmp_path), memory_mib=MEMORY_MIB) as vm:
        state = await until(look, lambda state: state.errors > 0 or state.is_done)
        assert state.errors > 0
