# SPDX-License-Identifier: GPL-2.0-or-later
"""What observes guests, while the kernel kills one of them; needs root."""

import asyncio
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.lib.holder import PAGE_BYTES, Holder

from memshare.clients import procfs
from memshare.errors import MeasurementError, MemshareError
from memshare.experiment import reckoning, watch
from memshare.experiment.guest import Guest, Report
from memshare.experiment.plan import EngineKind
from memshare.experiment.reckoning import Reckoner
from memshare.experiment.record import RunFolder
from memshare.experiment.sampler import Sampler
from memshare.experiment.stage import Stage
from memshare.experiment.watch import Watch

PAGES = 301  # a size that no other mapping of a holder has


class FakeGuest:
    """A process with memory, which is running until somebody waits for its end."""

    def __init__(self, name: str, holder: Holder) -> None:
        self.name = name
        self.pid = holder.pid
        self.ram_bytes = PAGES * PAGE_BYTES
        self.is_running = True

    def kill(self) -> None:
        """Kill it as the kernel does: its memory is gone, and its parent has not been told yet."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    async def has_ended(self) -> bool:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return False
        self.is_running = False
        return True


@pytest.fixture
def guests() -> Iterator[list[FakeGuest]]:
    with Holder(PAGES, mmap.MADV_NOHUGEPAGE) as one, Holder(PAGES, mmap.MADV_NOHUGEPAGE) as two:
        yield [FakeGuest("one", one), FakeGuest("two", two)]


def observed(folder: Path, guests: list[FakeGuest]) -> Watch:
    """A watch of a run in which these are running."""

    class Lab:
        @property
        def running(self) -> list[FakeGuest]:
            return [guest for guest in guests if guest.is_running]

    place = RunFolder(folder, 0, EngineKind.OFF)
    place.path.mkdir()
    observer = Watch(cast(Any, Lab()), cast(Any, None), Stage(), place)
    for guest in guests:
        observer._reckoner.add(cast(Guest, guest))
    return observer


async def test_looks_go_on_when_a_guest_is_killed(
    guests: list[FakeGuest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = observed(tmp_path, guests)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    look = observer._reckoner.look

    def look_and_tell() -> None:
        look()
        loop.call_soon_threadsafe(looked.set)

    monkeypatch.setattr(observer._reckoner, "look", look_and_tell)
    guests[1].kill()
    looks = asyncio.ensure_future(observer.looks())
    told = asyncio.ensure_future(looked.wait())
    await asyncio.wait((looks, told), return_when=asyncio.FIRST_COMPLETED)
    assert told.done() and not looks.done()
    assert [guest.is_running for guest in guests] == [True, False]
    looks.cancel()
    observer.close()


async def test_a_load_that_died_is_no_slow_one(
    guests: list[FakeGuest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = observed(tmp_path, guests)
    told = Report(
        load="web", load_died=True, interval_seconds=2.0, operations=0, latency_us={},
        longest_stall_us=None, integrity="ok",
    )  # fmt: skip

    async def report() -> Report:
        return told

    monkeypatch.setattr(guests[0], "report", report, raising=False)
    monkeypatch.setattr(guests[0], "is_verifying", True, raising=False)
    monkeypatch.setattr(guests[1], "is_verifying", False, raising=False)
    with pytest.raises(MemshareError, match="guest one: its load web has died"):
        await observer.reports()
    observer.close()


async def test_looks_fail_when_no_guest_has_ended(
    guests: list[FakeGuest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = observed(tmp_path, guests)

    def hide(_memories: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(reckoning.oracle, "look", hide)
    with pytest.raises(MeasurementError, match="not permitted"):
        await observer.looks()
    observer.close()


def test_what_a_killed_guest_holds_is_an_error_of_ours(guests: list[FakeGuest]) -> None:
    reckoner = Reckoner()
    one, two = (cast(Guest, guest) for guest in guests)
    reckoner.add(one)
    guests[0].kill()
    guests[1].kill()
    for read in (
        lambda: reckoner.add(two),
        reckoner.look,
        lambda: reckoner.begin(os.getpid(), 0),
        lambda: reckoner.count(None, with_cost=False),
    ):
        with pytest.raises(MeasurementError):
            read()


def test_a_guest_that_another_sample_has_dropped_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = SimpleNamespace(
        running=[SimpleNamespace(name="one", pid=1)], cgroup=SimpleNamespace(path=Path())
    )
    sampler = Sampler(cast(Any, lab), cast(Any, None), Stage(), cast(Any, None))

    def drop(_pid: int) -> dict[str, int]:
        sampler._pss = {}
        raise ProcessLookupError

    monkeypatch.setattr(procfs, "smaps_rollup", drop)
    sampler._read_pss()
    assert sampler._pss == {}
