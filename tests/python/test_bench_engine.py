# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of `./dev bench engine`: the mix, the frames behind it, the verdict."""

import ctypes
import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import click
import msgspec
import pytest
from tests.lib.broker import build_directory

from memshare.bench import cores, engine, frames, rig
from memshare.bench.frames import FrameCounter, Region
from memshare.bench.workers import Worker
from memshare.clients import procfs
from memshare.errors import MemshareError

SIZE_BYTES = 4 << 20
PAGES = SIZE_BYTES // 4096
RUN_PAGES = {"scattered": 1, "runs4": 4, "runs8": 8, "runs16": 16}


def worker(case: str, side: int, *, busy: bool = False) -> Worker:
    program = build_directory() / "tests" / "bench" / "region-worker"
    return Worker(program, case, side, SIZE_BYTES, busy=busy)


def pages_of(region: Region) -> list[bytes]:
    with open(f"/proc/{region.pid}/mem", "rb", buffering=0) as memory:
        data = os.pread(memory.fileno(), region.length_bytes, region.start)
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


@pytest.fixture(params=RUN_PAGES)
def pair(request: pytest.FixtureRequest) -> Iterator[list[Worker]]:
    """Two filled regions of one case."""
    with ExitStack() as stack:
        both = [stack.enter_context(worker(request.param, side)) for side in (0, 1)]
        for one in both:
            one.ready()
        yield both


def test_mix_is_the_standard_one(pair: list[Worker], request: pytest.FixtureRequest) -> None:
    first, second = (pages_of(one.region) for one in pair)
    zero = bytes(4096)
    common = {page for page in first if page != zero} & set(second)
    run_pages = next(pages for case, pages in RUN_PAGES.items() if f"[{case}]" in request.node.name)
    for pages in (first, second):
        assert pages.count(zero) == PAGES // 4
        assert sum(page in common for page in pages) == len(common) == PAGES // 4
        assert len(set(pages)) == 1 + PAGES // 4 + PAGES // 2
        # A run: neighbours that are neighbours on the other side as well. None is longer or shorter.
        other = second if pages is first else first
        place = {page: at for at, page in enumerate(other)}
        keys = [place[page] - at if page in common else None for at, page in enumerate(pages)]
        runs = [len(list(run)) for key, run in groupby(keys) if key is not None]
        assert set(runs) == {run_pages}
        marks = [
            len(list(run))
            for is_common, run in groupby(page in common for page in pages)
            if is_common
        ]
        assert set(marks) == {run_pages}
    assert sum(a == b != zero for a, b in zip(first, second, strict=True)) < PAGES // 16


def test_read_notices_one_changed_byte() -> None:
    with worker("runs16", 0) as one:
        one.ready()
        assert int(one.ask("read")) > 0
        with open(f"/proc/{one.region.pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), b"\x99", one.region.start + SIZE_BYTES - 77)
        with pytest.raises(MemshareError, match="other bytes"):
            one.ask("read")


def test_busy_thread_is_not_charged() -> None:
    with worker("runs16", 0, busy=True) as one:
        one.ready()
        before_ns, own_ns = procfs.cpu_ns(one.region.pid), one.cpu_ns()
        while procfs.cpu_ns(one.region.pid) - before_ns < 200_000_000:
            one.ask("stats")
        assert one.cpu_ns() - own_ns < 100_000_000


def test_worker_that_ends_is_reported() -> None:
    with worker("neither", 0) as one, pytest.raises(MemshareError, match="it ended, code 2"):
        one.ready()


def test_frames_are_counted_once(pair: list[Worker]) -> None:
    regions = [one.region for one in pair]
    with FrameCounter(regions, None) as counter:
        assert counter.count() == 2 * PAGES
    with FrameCounter([regions[0], regions[0]], None) as counter:
        assert counter.count() == PAGES


def own_region(memory: mmap.mmap) -> Region:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return Region(os.getpid(), address, len(memory))


def test_frames_given_back_count_no_longer() -> None:
    memory = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = b"x" * len(memory)
    with FrameCounter([own_region(memory)], None) as counter:
        assert counter.count() == 16
        memory.madvise(mmap.MADV_DONTNEED, 0, 6 * 4096)
        assert counter.count() == 10


def test_pages_of_a_file_count_with_the_store_only() -> None:
    file = os.memfd_create("memshare-test")
    os.ftruncate(file, 16 * 4096)
    memory = mmap.mmap(file, 16 * 4096, flags=mmap.MAP_PRIVATE)
    os.close(file)
    assert memory[::4096] == bytes(16)  # now they are mapped
    memory[5 * 4096] = 1  # this one is a copy, a frame of our own
    with FrameCounter([own_region(memory)], None) as counter:
        assert counter.count() == 1


def test_store_counts_by_what_its_files_hold(pair: list[Worker]) -> None:
    before = frames.store_pages(os.getpid())  # engines of other tests may have some
    segment = os.memfd_create(f"memshare-{frames.GROUP}-0")
    try:
        os.ftruncate(segment, 64 << 20)
        os.pwrite(segment, bytes(5 * 4096), 4096)
        twice = os.dup(segment)
        assert frames.store_pages(os.getpid()) == before + 5
        os.close(twice)
        with FrameCounter([one.region for one in pair], os.getpid()) as counter:
            assert counter.count() == 2 * PAGES + before + 5
    finally:
        os.close(segment)


def test_what_is_measured_has_a_core_of_its_own() -> None:
    ours = os.sched_getaffinity(0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        with pytest.raises(KeyError), cores.alone_on_one([other.pid]):
            taken = os.sched_getaffinity(other.pid)
            assert len(taken) == 1
            assert len(ours) == 1 or os.sched_getaffinity(0) == ours - taken
            raise KeyError
        assert os.sched_getaffinity(other.pid) == os.sched_getaffinity(0) == ours


RESULT = engine.Result(
    case="runs16", busy=False, ours_cpu_seconds=1.0, ksmd_cpu_seconds=5.0, cpu_ratio=0.2,
    oracle_fraction=0.99, reread_seconds_ours=0.1, reread_seconds_ksm=0.1, ours=[],
    off_cpu_seconds=[], ksmd=[], size_bytes=1 << 30, ksm_use_zero_pages=False, kernel="", cpu_model="", load_before=0.0,
    one_core=True,
)  # fmt: skip


def test_verdict() -> None:
    replace = msgspec.structs.replace
    assert engine.misses([RESULT, replace(RESULT, case="scattered", cpu_ratio=3.0)]) == []
    assert engine.misses([replace(RESULT, busy=True, cpu_ratio=0.26)]) == [
        "runs16 busy: cpu_ratio 0.260 is above its bar, 0.25"
    ]
    assert engine.misses(
        [replace(RESULT, case="scattered", cpu_ratio=None, oracle_fraction=0.5)]
    ) == ["scattered: stopped at 50.0% of the oracle"]


def test_a_run_that_does_not_converge_fails_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    class Stuck(engine.Bench):
        def __init__(self) -> None:
            pass

        def ours(self, label: str, case: str, *, busy: bool) -> engine.Reached:
            raise engine.NotConvergedError("ours", 0.42)

    facts: dict[str, object] = {
        "kernel": "", "cpu_model": "", "load_before": 0.0, "size_bytes": 1 << 30, "ksm_use_zero_pages": False,
    }  # fmt: skip
    result = engine.measure(Stuck(), "runs16", True, 3, facts)
    assert (result.cpu_ratio, result.oracle_fraction, result.busy) == (None, 0.42, True)
    assert engine.misses([result]) == ["runs16 busy: stopped at 42.0% of the oracle"]
    assert "ours reached 42.0% of the oracle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("1G", 1 << 30), ("64m", 64 << 20), ("1048576", 1 << 20)]
)
def test_size(text: str, size: int) -> None:
    assert rig.parse_size(None, None, text) == size  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "G", "1.5G", "100K", "-1G", "0", "1048577"])
def test_bad_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        rig.parse_size(None, None, text)  # type: ignore[arg-type]


def test_program_that_is_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemshareError, match="not there"):
        Worker(tmp_path / "region-worker", "runs16", 0, SIZE_BYTES, busy=False)
