# SPDX-License-Identifier: GPL-2.0-or-later
"""The tuner of the kernel's KSM: against this kernel, and against knobs in a folder."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from tests.lib.vm import until

from memshare.clients import ksm, ksm_marks, procfs
from memshare.config import Config, MetricsConfig
from memshare.daemon.ksm import KsmTuner
from memshare.daemon.service import Service
from memshare.daemon.state import State
from memshare.errors import HostError
from memshare.model import WITHOUT_PLUGIN, Domain, KsmView
from memshare.policy import Host
from memshare.policy import State as PolicyState
from memshare.policy.ksm import KsmConfig
from memshare.policy.pressure import Pressure

PAGES = 2048
# Pages that no other page of the process is equal to, and marked.
GUEST = f"""
import mmap, struct, sys
memory = mmap.mmap(-1, {PAGES * 4096}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range({PAGES}):
    memory[page * 4096 : (page + 1) * 4096] = struct.pack("<Q", page + 1) * 512
memory.madvise(mmap.MADV_MERGEABLE)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def marked_process() -> Iterator[int]:
    """A process like a guest without the plugin; gives its id."""
    with subprocess.Popen(
        [sys.executable, "-c", GUEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


def pressure(urgency: float) -> Pressure:
    host = Host(cpus=2, total_bytes=1 << 34, available_bytes=1 << 30)
    return Pressure(taken_ns=0, host=host, urgency=urgency, full_stall_ratio=0, cause="a test")


def bare(name: str) -> Domain:
    return Domain(name=name, problem=WITHOUT_PLUGIN)


def configuration(state_dir: Path) -> Config:
    tuned = KsmConfig(enabled=True, full_scan_seconds=0.2, barren_scans=3, probe_seconds=36000)
    return Config(state_dir=str(state_dir), ksm=tuned)


class Tuned:
    """A tuner, and the guests that it is told of."""

    def __init__(self, state_dir: Path, guests: dict[str, int]) -> None:
        self.tuner = KsmTuner(configuration(state_dir))
        self.guests = guests

    async def step(self) -> KsmView:
        guests = [(bare(name), pid) for name, pid in self.guests.items()]
        return await self.tuner.step(guests, pressure(1.0))

    async def until(self, accept: Callable[[KsmView], bool]) -> KsmView:
        return await until(self.step, accept)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """This kernel's KSM for a test, with nothing merged; gives the processes that are looked at.

    ksmd scans those of others too. They may go first; if they stay, all takes longer, and what is asserted of
    the whole host leaves room for them.
    """
    end = time.monotonic() + 30
    while ksm.processes_marked() and time.monotonic() < end:
        time.sleep(0.5)
    seen: set[int] = set()
    monkeypatch.setattr(ksm_marks, "processes", lambda: frozenset(seen))
    monkeypatch.setattr(ksm_marks, "ALL_SECONDS", 0.0)
    with ksm.preserved():
        monkeypatch.setattr(ksm, "locked", nullcontext)
        (ksm.KSM / "run").write_text(ksm.RUN_UNMERGE)
        yield seen


async def test_guests_are_merged_until_nothing_is_left(kernel: set[int], tmp_path: Path) -> None:
    with marked_process() as one, marked_process() as two:
        kernel |= {one, two}
        host = Tuned(tmp_path, {"one": one, "two": two})
        view = await host.until(lambda view: view.phase == "resting")
        assert view.counters is not None
        assert view.counters.pages_sharing >= PAGES
        assert view.guests["one"].merging_pages + view.guests["two"].merging_pages >= 2 * PAGES
        assert ksm.read_knobs()["run"] == ksm.RUN_STOP

        with marked_process() as alien:
            kernel.add(alien)
            view = await host.step()
            assert view.phase == "off" and f"process {alien} (" in view.reason
            kernel.remove(alien)
        assert (await host.step()).phase == "scanning"
        assert ksm.read_knobs()["run"] == ksm.RUN_MERGE

        with marked_process() as alien:
            kernel.add(alien)
            assert (await host.step()).phase == "off"
            assert ksm.read_knobs()["run"] == ksm.RUN_STOP
            assert ksm.read_counters().pages_sharing >= PAGES
            kernel.remove(alien)

        assert (await host.step()).phase == "scanning"
        ksm.write_knobs({"pages_to_scan": "777"})
        view = await host.step()
        assert view.phase == "handed-over" and "pages_to_scan to 777" in view.reason
        await host.tuner.close()
        assert ksm.read_knobs()["pages_to_scan"] == "777"


async def test_what_ended_guests_cost_is_given_back(kernel: set[int], tmp_path: Path) -> None:
    before = ksm.read_knobs()
    with marked_process() as one:
        kernel.add(one)
        host = Tuned(tmp_path, {"one": one})
        await host.until(lambda view: view.phase == "resting")
        known_pages = ksm.read_counters().known_pages
        assert known_pages >= PAGES
    kernel.clear()
    host.guests.clear()
    await host.until(lambda view: view.phase == "off")
    assert ksm.read_counters().known_pages <= known_pages - PAGES // 2
    await host.tuner.close()
    assert ksm.read_knobs() == before | {"run": ksm.RUN_STOP}


async def test_guest_of_unknown_group_is_not_scanned(kernel: set[int], tmp_path: Path) -> None:
    with marked_process() as one:
        kernel.add(one)
        host = Tuned(tmp_path, {"one": one})
        assert (await host.step()).phase == "scanning"
        view = await host.tuner.step([(Domain(name="one"), one)], pressure(1.0))
        assert view.phase == "off" and "group that is not known" in view.reason
        tenants = Domain(name="one", uuid="u", source="qemu:///system", owner_group="tenant-a")
        view = await host.tuner.step([(tenants, one)], pressure(1.0))
        assert view.phase == "off" and "tenant-a" in view.reason


@pytest.fixture
def knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the kernel's, and this process as the only marked one."""
    folder = tmp_path / "ksm"
    folder.mkdir()
    values = "advisor_mode none pages_to_scan 123 run 0 sleep_millisecs 45 use_zero_pages 1".split()
    for name, value in zip(values[::2], values[1::2], strict=True):
        (folder / name).write_text(value)
    for name in "pages_shared pages_sharing pages_unshared pages_volatile full_scans".split():
        (folder / name).write_text("0")
        (folder / name).chmod(0o444)
    monkeypatch.setattr(ksm, "KSM", folder)
    monkeypatch.setattr(ksm, "is_marked", lambda pid: True)
    monkeypatch.setattr(ksm_marks, "processes", lambda: frozenset({os.getpid()}))
    return folder


async def test_knobs_are_put_back(knobs: Path, tmp_path: Path) -> None:
    before = ksm.read_knobs()
    host = Tuned(tmp_path, {"me": os.getpid()})
    assert (await host.step()).phase == "scanning"
    assert ksm.read_knobs() != before
    await host.tuner.close()
    assert ksm.read_knobs() == before


async def test_successor_of_a_killed_daemon_puts_them_back(knobs: Path, tmp_path: Path) -> None:
    before = ksm.read_knobs()
    killed = Tuned(tmp_path, {"me": os.getpid()})
    await killed.step()
    killed.tuner._lock.close()
    successor = Tuned(tmp_path, {"me": os.getpid()})
    assert (await successor.step()).phase == "scanning"
    await successor.tuner.close()
    assert ksm.read_knobs() == before


async def test_a_successor_that_does_not_steer_puts_them_back_too(
    knobs: Path, tmp_path: Path
) -> None:
    before = ksm.read_knobs()
    killed = Tuned(tmp_path, {"me": os.getpid()})
    await killed.step()
    killed.tuner._lock.close()
    assert ksm.read_knobs() != before
    config = Config(
        connect=(),
        qmp_dirs=(str(tmp_path),),
        broker="",
        socket=str(tmp_path / "socket"),
        state_dir=str(tmp_path),
        metrics=MetricsConfig(port=0),
    )
    service = Service(tmp_path / "memshare.toml", config)
    service._signals.put_nowait(signal.SIGTERM)
    with pytest.raises(ExceptionGroup):
        await service._serve(State(policy=PolicyState()))
    assert ksm.read_knobs() == before
    assert not (tmp_path / "ksm.json").exists()


async def test_a_step_that_is_late_changes_nothing_after_the_end(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ksm.read_knobs()
    looking, answers = threading.Event(), threading.Event()

    def is_marked(_pid: int) -> bool:
        looking.set()
        return answers.wait()

    monkeypatch.setattr(ksm, "is_marked", is_marked)
    host = Tuned(tmp_path, {"me": os.getpid()})
    step = asyncio.create_task(host.step())
    try:
        assert await asyncio.to_thread(looking.wait, 60)
        step.cancel()
        await host.tuner.close()
    finally:
        answers.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert ksm.read_knobs() == before
    assert not (tmp_path / "ksm.json").exists()


async def test_unmerging_is_never_put_back(knobs: Path, tmp_path: Path) -> None:
    (knobs / "run").write_text("2")
    host = Tuned(tmp_path, {"me": os.getpid()})
    await host.step()
    await host.tuner.close()
    assert ksm.read_knobs()["run"] == "0"


async def test_nobody_steers_beside_a_measurement(knobs: Path, tmp_path: Path) -> None:
    before = ksm.read_knobs()
    host = Tuned(tmp_path, {"me": os.getpid()})
    with ksm.locked():
        view = await host.step()
        assert view.phase == "unavailable" and "is using KSM" in view.reason
        assert ksm.read_knobs() == before
    assert (await host.step()).phase == "scanning"
    with pytest.raises(HostError), ksm.locked():
        pytest.fail("both steer")
    await host.tuner.close()
    with ksm.locked():
        pass


async def test_blind_means_off(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Tuned(tmp_path, {"me": os.getpid()})
    assert (await host.step()).phase == "scanning"

    def refuse(pid: int) -> bool:
        raise PermissionError(13, "permission denied")

    monkeypatch.setattr(ksm, "is_marked", refuse)
    view = await host.step()
    assert view.phase == "unavailable" and "permission denied" in view.reason
    assert ksm.read_knobs()["run"] == ksm.RUN_STOP
    monkeypatch.setattr(ksm, "is_marked", lambda pid: True)
    assert (await host.step()).phase == "scanning"


async def test_knob_that_cannot_be_set_is_told(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Tuned(tmp_path, {"me": os.getpid()})
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path == knobs / "sleep_millisecs":
            raise OSError(16, "Device or resource busy", str(path))
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(3):  # what was set before it is ours, and no reason to hand KSM over
        view = await host.step()
        assert view.phase == "unavailable" and "busy" in view.reason
    monkeypatch.setattr(Path, "write_text", write)
    assert (await host.step()).phase == "scanning"


def test_ksmtuned_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ksmtuned"
    script.write_text("#!/bin/sh\necho ready; read word\n")
    script.chmod(0o755)
    for command in ([str(script)], ["/bin/sh", str(script)]):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            marks = ksm_marks.Marks()
            marks.look([])
            assert marks.tuner == "ksmtuned"
            process.kill()
    marks = ksm_marks.Marks()
    marks.look([])
    assert marks.tuner == ""


@pytest.mark.parametrize("is_old", [False, True])
def test_marks_are_seen(is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a process that has come after all were read; by smaps where ksm_stat does not tell."""
    if is_old:
        read = Path.read_text
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, **how: (
                "ksm_rmap_items 0\n" if path.name == "ksm_stat" else read(path, **how)
            ),
        )
    seen = {os.getpid()}
    monkeypatch.setattr(ksm_marks, "processes", lambda: frozenset(seen))
    marks = ksm_marks.Marks()
    marks.look([])
    assert not marks.marked
    with marked_process() as pid:
        seen.add(pid)
        marks.look([pid])
        assert list(marks.marked) == [pid]
        seen.remove(pid)
    marks.look([])
    assert not marks.marked


def test_a_process_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = tmp_path / "7"
    process.mkdir()
    for name, text in {
        "comm": b"w\xe9b\n",
        "stat": b"7 (w\xe9b) S" + b" 1" * 40,
        "status": b"Name:\tw\xe9b\nVmRSS:\t4 kB\n",
        "ksm_stat": b"ksm_rmap_items 0\n",
        "smaps": b"1000-2000 rw-p 0 00:01 5 /w\xe9b\nVmFlags: rd mg\n",
    }.items():
        (process / name).write_bytes(text)
    ksmd = tmp_path / "8"
    ksmd.mkdir()
    (ksmd / "stat").write_text("8 (ksmd) S 2 0")
    monkeypatch.setattr(procfs, "PROC", tmp_path)
    (tmp_path / "self").symlink_to("7")
    marks = ksm_marks.Marks()
    monkeypatch.setattr(ksm_marks, "processes", lambda: frozenset({7}))
    marks.look([])
    assert marks.marked == {7: "w\ufffdb"}
    assert ksm.processes_marked() == ["7 (w\ufffdb)"]
    assert ksm.ksmd_pid() == 8
    assert procfs.start_ticks(7) == 1
    assert procfs.cpu_seconds(7) > 0
    assert procfs.status(7) == {"VmRSS": 4096}
    assert [mapping.path for mapping, _ in procfs.smaps(7)] == ["/w\ufffdb"]


def test_stat_is_parsed() -> None:
    told = "ksm_rmap_items 5\nksm_zero_pages 1\nksm_merging_pages 3\nksm_process_profit -64\n"
    stats = ksm.parse_stat(told + "ksm_merge_any: no\nksm_mergeable: yes\n")
    assert (stats.rmap_items, stats.zero_pages, stats.merging_pages) == (5, 1, 3)
    assert stats.profit_bytes == -64
    assert ksm.parse_stat("ksm_rmap_items 5\n").merging_pages == 0
