# SPDX-License-Identifier: GPL-2.0-or-later
"""Neither a broker nor an engine that is stuck stops a monitor, a guest or the end of QEMU."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.lib.broker import Broker, build_directory, wait_until
from tests.lib.migration import migration_is, set_bandwidth
from tests.lib.payload import Report, settled, shares_on, shares_well, sharing
from tests.lib.vm import DEADLINE_SECONDS, OBJECT, Vm, VmError, running

pytestmark = pytest.mark.full_hash

MIB = 1 << 20
#: Each is answered without waiting for anything but QEMU itself.
COMMANDS: list[tuple[str, dict[str, Any]]] = [
    ("qom-get", {"path": OBJECT, "property": "stats"}),
    ("qom-set", {"path": OBJECT, "property": "scan-rate", "value": 0}),
    ("qom-set", {"path": OBJECT, "property": "scan-rate", "value": 200_000}),
    ("qom-set", {"path": OBJECT, "property": "cpu-limit", "value": 90}),
    ("qom-set", {"path": OBJECT, "property": "mode", "value": "zero"}),
    ("qom-set", {"path": OBJECT, "property": "mode", "value": "off"}),
    ("qom-set", {"path": OBJECT, "property": "mode", "value": "content"}),
    ("query-status", {}),
    ("stop", {}),
    ("cont", {}),
]
RAM_BYTES, MORE_BYTES = 64 * MIB, 32 * MIB
#: The plugin looks once a second what there is to register or to let go of.
LOOKS_SECONDS = 2.5


async def answers(vm: Vm, command: str, **arguments: object) -> Any:
    """Run a command, which must answer."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await vm.execute(command, **arguments)
    except TimeoutError:
        raise VmError(f"{command} {arguments} has not been answered") from None


async def add_memory(vm: Vm, name: str) -> None:
    """Plug memory in, of which the guest sees nothing."""
    await answers(vm, "object-add", qom_type="memory-backend-ram", id=name, size=MORE_BYTES)


async def all_are_answered(vm: Vm) -> None:
    """Run all commands again and again, and while the plugin looks at memory that has come and gone."""
    await add_memory(vm, "new")
    await answers(vm, "object-del", id="old")
    end = time.monotonic() + LOOKS_SECONDS
    while time.monotonic() < end:
        for command, arguments in COMMANDS:
            await answers(vm, command, **arguments)
    await answers(vm, "system_reset")


async def has_memory(vm: Vm, size_bytes: int) -> None:
    """Wait until so much is registered."""
    await vm.stats_when(lambda stats: bool(stats["ram_bytes"] == size_bytes))


async def migrates(vm: Vm, wanted: str) -> None:
    """Write the guest to nowhere."""
    await set_bandwidth(vm, 1 << 40)
    await answers(vm, "migrate", uri="exec:cat >/dev/null")
    await migration_is(vm, wanted)


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """What the guest says."""
    return Report(tmp_path / "report")


@contextmanager
def stopped(broker: Broker) -> Iterator[None]:
    """Stop the broker for a while."""
    broker.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        broker.process.send_signal(signal.SIGCONT)


async def test_I7_a_broker_that_is_stuck_stops_nobody(broker: Broker, report: Report) -> None:
    async with settled(broker, report) as vm:
        await add_memory(vm, "old")
        await has_memory(vm, RAM_BYTES + MORE_BYTES)
        with stopped(broker):
            await all_are_answered(vm)
            await report.more_rounds()
        await shares_well(vm)
        await shares_on(vm)
        with stopped(broker):
            await migrates(vm, "completed")
            await answers(vm, "cont")
            await report.more_rounds()
            assert await vm.quit() == 0


async def test_I7_a_broker_that_never_answers_stops_nobody(broker: Broker, report: Report) -> None:
    with stopped(broker):
        async with running(*sharing(broker), *report.arguments) as vm:
            await add_memory(vm, "old")
            await all_are_answered(vm)
            await report.more_rounds()
            await migrates(vm, "completed")
            assert (await vm.stats())["state"] == "waiting-for-broker"
            assert await vm.terminate() == 0


class Stall:
    """Lets the engine in QEMU get stuck, and go on (stall.c)."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "stall"
        library = build_directory() / "tests" / "integration" / "libstall.so"
        self.environment = {"LD_PRELOAD": str(library), "MEMSHARE_STALL": str(self._path)}

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """Have it stuck, with its lock held."""
        reached = self._path.with_name("stall.reached")
        reached.unlink(missing_ok=True)
        self._path.touch()
        try:
            wait_until(reached.exists, "the engine is stuck")
            yield
        finally:
            self._path.unlink()


async def test_an_engine_that_is_stuck_stops_nobody(
    broker: Broker, report: Report, tmp_path: Path
) -> None:
    stall = Stall(tmp_path)
    async with settled(broker, report, environment=stall.environment) as vm:
        await add_memory(vm, "old")
        await has_memory(vm, RAM_BYTES + MORE_BYTES)
        with stall.stuck():
            await all_are_answered(vm)
            await report.more_rounds()
            assert (await vm.stats())["ram_bytes"] == RAM_BYTES + MORE_BYTES, (
                "it has changed nothing"
            )
        await answers(vm, "object-del", id="new")
        await has_memory(vm, RAM_BYTES)
        await shares_well(vm)
        await shares_on(vm)
        with stall.stuck():
            await migrates(vm, "completed")
            assert await vm.quit() == 0


async def test_a_background_snapshot_fails_when_the_engine_is_stuck(
    broker: Broker, report: Report, tmp_path: Path
) -> None:
    """It needs memory that the engine does not let go of; the guest goes on, and shares on later."""
    stall = Stall(tmp_path)
    capability = ["-global", "migration.x-background-snapshot=on"]
    async with settled(broker, report, *capability, environment=stall.environment) as vm:
        await shares_on(vm)
        with stall.stuck():
            await migrates(vm, "failed")
            await answers(vm, "cont")
            await report.more_rounds()
        await shares_on(vm)
        await migrates(vm, "completed")
        await shares_on(vm)
        await report.more_rounds()
