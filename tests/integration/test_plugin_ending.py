# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU ends at any time of sharing, and begins in the background."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.lib.broker import Broker, Control, wait_until
from tests.lib.payload import Report, settled, shares_well, sharing
from tests.lib.vm import QEMU, Vm, plugin_arguments, run_refused, running

pytestmark = pytest.mark.full_hash

AS_FAST_AS_IT_CAN = 2**64 - 1
TIMES = 4


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """What the guest says."""
    return Report(tmp_path / "report")


def all_slots_are_back(control: Control) -> None:
    """Wait until the broker has counted that nobody maps anything."""
    wait_until(lambda: control.group()["grants"] == 0, "all slots are back")


async def test_I6_qemu_ends_while_windows_are_open(
    broker: Broker, control: Control, report: Report
) -> None:
    for time in range(TIMES):
        async with running(*sharing(broker, AS_FAST_AS_IT_CAN), *report.arguments) as vm:
            await vm.stats_when(lambda stats: bool(stats["merged_pages"]))
            assert await (vm.quit() if time % 2 else vm.terminate()) == 0
    all_slots_are_back(control)


async def test_I6_qemu_ends_while_it_drains(
    broker: Broker, control: Control, report: Report
) -> None:
    draining = 0
    for time in range(TIMES):
        async with settled(broker, report) as vm:
            await vm.set("mode", "off" if time < TIMES // 2 else "zero")
            stats = await vm.stats()
            draining += bool(stats["shared_pages"])
            assert await (vm.quit() if time % 2 else vm.terminate()) == 0
    assert draining
    all_slots_are_back(control)


class Daemon:
    """A QEMU that is no child of ours; what Vm wants to know of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @property
    def returncode(self) -> int | None:
        """Nobody tells with what it has ended."""
        return None

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there still."""
        signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Wait for its end."""
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, ended.set)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        return 0

    def close(self) -> None:
        """End it if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        os.close(self._pidfd)


@contextlib.asynccontextmanager
async def daemonized(directory: Path, *arguments: str) -> AsyncIterator[Vm]:
    """Have QEMU go to the background; returns when it has."""
    socket, log, pid_file = directory / "qmp", directory / "stderr", directory / "pid"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(QEMU, "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-daemonize"),
            *("-pidfile", str(pid_file), "-qmp", f"unix:{socket},server=on,wait=off"),
            *arguments,
            stderr=stderr,
        )
    assert await process.wait() == 0, log.read_text()
    with contextlib.closing(Daemon(int(pid_file.read_text()))) as daemon:
        vm = Vm(daemon, log)
        await vm.connect(socket)
        yield vm
        await vm.quit()


async def test_I1_a_guest_that_runs_in_the_background_shares(
    broker: Broker, control: Control, report: Report, tmp_path: Path
) -> None:
    async with daemonized(tmp_path, *sharing(broker), *report.arguments) as vm:
        await shares_well(vm)
        await report.more_rounds()
    all_slots_are_back(control)


async def test_a_wrong_argument_is_told_before_qemu_goes_to_the_background() -> None:
    status, stderr = await run_refused(*plugin_arguments(mode="all"), "-daemonize")
    assert status != 0
    assert "memshare: mode=all is none of off, zero, content" in stderr
