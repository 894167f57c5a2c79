# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that write and verify all the time are migrated and saved while they share."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError
from tests.lib.broker import Broker
from tests.lib.migration import (
    CRAWL,
    MEMORY,
    UNLIMITED,
    memory_digest,
    migration_is,
    set_bandwidth,
    set_capabilities,
)
from tests.lib.payload import SCAN_RATE, Report, settled, shares_on, shares_well, sharing
from tests.lib.vm import Vm, VmError, running, until

pytestmark = pytest.mark.full_hash

#: The plugin looks once a second whether it may share.
LOOKS_SECONDS = 2.5


@pytest.fixture
def far_broker() -> Iterator[Broker]:
    """The broker of another host."""
    with Broker("--group", "default", "--allow-by-mode", "--socket-mode", "0666") as running_there:
        yield running_there


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """What the guest says."""
    return Report(tmp_path / "report")


@pytest.fixture
def far_report(tmp_path: Path) -> Report:
    """What it says on another host."""
    return Report(tmp_path / "far-report")


@pytest.mark.parametrize(
    "capabilities",
    [(), ("multifd",), pytest.param(("xbzrle",), marks=pytest.mark.slow)],
    ids=",".join,
)
async def test_I1_precopy_between_hosts_that_both_share(
    capabilities: Sequence[str],
    broker: Broker,
    far_broker: Broker,
    report: Report,
    far_report: Report,
    tmp_path: Path,
) -> None:
    uri = f"unix:{tmp_path}/migration"
    incoming = [*sharing(far_broker), *far_report.arguments, *MEMORY, "-incoming", "defer", "-S"]
    async with settled(broker, report, *MEMORY) as source, running(*incoming) as destination:
        await set_bandwidth(source, CRAWL)
        await source.execute("migrate", uri="exec:cat >/dev/null")
        await migration_is(source, "active")
        await source.execute("migrate_cancel")
        await migration_is(source, "cancelled")

        for vm in (source, destination):
            await set_capabilities(vm, *capabilities)
        await destination.execute("migrate-incoming", uri=uri)
        await source.execute("migrate", uri=uri)
        await migration_is(source, "active")
        # Shared pages travel like any others, and the guest goes on sharing.
        await shares_on(source)
        await report.more_rounds()
        stats = await destination.stats()
        assert (stats["state"], stats["ram_bytes"]) == ("refused", 0)
        assert "incoming migration" in stats["refusal"]

        await set_bandwidth(source, UNLIMITED)
        await migration_is(source, "completed")
        await migration_is(destination, "completed")
        assert await memory_digest(source, tmp_path) == await memory_digest(destination, tmp_path)

        await destination.execute("cont")
        await shares_well(destination)
        await far_report.more_rounds()
        assert (await source.stats())["state"] == "running"


async def test_I1_postcopy_between_hosts_that_both_share(
    broker: Broker, far_broker: Broker, report: Report, far_report: Report, tmp_path: Path
) -> None:
    uri = f"unix:{tmp_path}/migration"
    incoming = [*sharing(far_broker), *far_report.arguments, *MEMORY, "-incoming", "defer", "-S"]
    async with settled(broker, report, *MEMORY) as source, running(*incoming) as destination:
        for vm in (source, destination):
            await set_capabilities(vm, "postcopy-ram")
        await set_bandwidth(source, CRAWL)
        await destination.execute("migrate-incoming", uri=uri)
        await source.execute("migrate", uri=uri)
        await migration_is(source, "active")
        await source.execute("migrate-start-postcopy")
        await migration_is(destination, "postcopy-active")
        # Pages arrive slowly now, through a userfaultfd of QEMU's.
        with pytest.raises(VmError, match="an incoming migration has not finished"):
            await until(destination.stats, lambda stats: bool(stats["ram_bytes"]), LOOKS_SECONDS)

        await destination.execute("cont")
        await migration_is(destination, "postcopy-active")
        await set_bandwidth(source, UNLIMITED)
        await migration_is(source, "completed")
        await migration_is(destination, "completed")
        await shares_well(destination)
        await shares_on(destination)
        await far_report.more_rounds()
        assert (await source.stats())["state"] == "running"


async def test_I1_rdma_which_needs_memory_to_stay_in_place_is_refused(
    broker: Broker, report: Report
) -> None:
    async with settled(broker, report) as vm:
        with pytest.raises(ExecuteError, match="cannot disable RAM discard"):
            await vm.execute("migrate", uri="rdma:127.0.0.1:1")
        await report.more_rounds()


class Sink:
    """Takes what QEMU writes to a socket, from when it is told to."""

    def __init__(self, directory: Path) -> None:
        self.socket, self.file = directory / "sink", directory / "snapshot"
        self.may_read = asyncio.Event()
        self.done = asyncio.Event()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the one connection."""
        await self.may_read.wait()
        with self.file.open("wb") as file:
            while chunk := await reader.read(1 << 20):
                file.write(chunk)
        writer.close()
        self.done.set()


async def allow_background_snapshots(vm: Vm) -> None:
    """Set the capability. QEMU tries then whether it could register the memory: sharing pauses for it."""
    await vm.set("scan-rate", 0)
    await vm.stats_when(
        lambda stats: bool(stats["state"] == "paused" and stats["tracked_pages"] == 0)
    )
    await set_capabilities(vm, "background-snapshot")
    await vm.set("scan-rate", SCAN_RATE)
    await shares_on(vm)


async def test_I1_a_background_snapshot_of_a_guest_that_shares(
    broker: Broker, report: Report, far_report: Report, tmp_path: Path
) -> None:
    sink = Sink(tmp_path)
    async with (
        settled(broker, report) as vm,
        await asyncio.start_unix_server(sink.take, sink.socket, limit=1 << 20),
    ):
        await allow_background_snapshots(vm)
        await vm.execute("migrate", uri=f"unix:{sink.socket}")
        await migration_is(vm, "active")
        stats = await vm.stats()
        assert (stats["state"], stats["tracked_pages"]) == ("paused", 0)

        sink.may_read.set()
        await migration_is(vm, "completed")
        await sink.done.wait()
        await shares_on(vm)
        await report.more_rounds()

    saved = ["-incoming", f"exec:cat {sink.file}"]
    async with running(*sharing(broker), *far_report.arguments, *saved) as vm:
        await shares_well(vm)
        await far_report.more_rounds()


async def monitor(vm: Vm, command: str) -> None:
    """Run a command of the human monitor that says nothing when all is well."""
    assert await vm.execute("human-monitor-command", command_line=command) == ""


@pytest.fixture
async def disk(tmp_path: Path) -> list[str]:
    """A disk that can hold snapshots."""
    image = tmp_path / "disk.qcow2"
    process = await asyncio.create_subprocess_exec(
        "qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M"
    )
    assert await process.wait() == 0
    return ["-drive", f"file={image},format=qcow2,if=none,id=disk"]


async def test_I1_loadvm_brings_memory_back_as_savevm_found_it(
    broker: Broker, report: Report, disk: list[str], tmp_path: Path
) -> None:
    async with settled(broker, report, *MEMORY, *disk) as vm:
        await vm.execute("stop")
        saved = await memory_digest(vm, tmp_path)
        await monitor(vm, "savevm stopped")
        await vm.execute("cont")
        await report.more_rounds()
        await monitor(vm, "savevm running")
        await shares_well(vm)

        await vm.execute("stop")
        assert await memory_digest(vm, tmp_path) != saved
        await monitor(vm, "loadvm stopped")
        assert await memory_digest(vm, tmp_path) == saved
        await vm.execute("cont")
        await report.more_rounds()

        await monitor(vm, "loadvm running")
        await report.more_rounds()
        await shares_well(vm)
        await shares_on(vm)


async def test_I1_a_guest_that_is_reset_begins_anew_and_shares_again(
    broker: Broker, report: Report
) -> None:
    async with settled(broker, report) as vm:
        for _ in range(3):
            await vm.execute("system_reset")
            await report.more_rounds(1)
        await shares_well(vm)
        await shares_on(vm)
        await report.more_rounds()
