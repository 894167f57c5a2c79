# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says of memory, as files of a host and of cgroups have it."""

import asyncio
import os
from pathlib import Path

import pytest

from memshare.bench.cgroup import limited
from memshare.clients.host import (
    parse_pressure,
    pressure_alarm,
    pressure_file,
    read_cgroup,
    read_host,
)
from memshare.errors import HostError

GIB = 1 << 30


def cgroup(directory: Path, **files: str) -> Path:
    """Write files of a cgroup; a dash in a name is its dot."""
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


def test_a_limit_of_version_2_counts_clean_page_cache_as_free(tmp_path: Path) -> None:
    stat = f"anon 5\nkernel 7\nactive_file {GIB}\ninactive_file {GIB}\nfile_dirty {GIB // 2}\nfile_writeback 0\n"
    folder = cgroup(
        tmp_path, memory__max=f"{8 * GIB}\n", memory__current=f"{5 * GIB}\n", memory__stat=stat
    )
    memory = read_cgroup(folder)
    assert (memory.limit_bytes, memory.total_bytes) == (8 * GIB, 5 * GIB)
    assert (memory.used_bytes, memory.kernel_bytes) == (5 * GIB - 3 * GIB // 2, 7)
    (folder / "memory.max").write_text("max\n")
    assert read_cgroup(folder).limit_bytes == 0


def test_a_limit_of_version_1(tmp_path: Path) -> None:
    stat = f"cache 7\ntotal_active_file 0\ntotal_inactive_file {GIB}\ntotal_dirty 0\ntotal_writeback 0\n"
    folder = cgroup(
        tmp_path,
        memory__limit_in_bytes=f"{2 * GIB}\n",
        memory__usage_in_bytes=f"{2 * GIB}\n",
        memory__stat=stat,
    )
    memory = read_cgroup(folder)
    assert (memory.limit_bytes, memory.used_bytes, memory.kernel_bytes) == (2 * GIB, GIB, None)
    cgroup(folder, memory__kmem__usage_in_bytes="9\n")
    assert read_cgroup(folder).kernel_bytes == 9


def test_a_cgroup_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=rf"{tmp_path}/absent: No such file"):
        read_host(tmp_path / "absent")
    cgroup(tmp_path, memory__stat="", memory__max="many\n", memory__current="1\n")
    with pytest.raises(HostError, match="many"):
        read_host(tmp_path)


def test_pressure_is_in_nanoseconds() -> None:
    lines = ["some avg10=0.12 avg60=0.00 avg300=0.00 total=42", "full avg10=0.00 total=7"]
    assert parse_pressure(lines) == {"some": 42_000, "full": 7_000}


def test_a_cgroup_has_its_own_pressure_where_the_kernel_tells_it(tmp_path: Path) -> None:
    assert pressure_file(tmp_path) == Path("/proc/pressure/memory")
    (tmp_path / "memory.pressure").write_text("")
    assert pressure_file(tmp_path) == tmp_path / "memory.pressure"


def test_this_host_has_memory_left() -> None:
    host = read_host()
    assert 0 < host.headroom_bytes <= host.capacity_bytes
    assert host.cpus >= 1


async def test_the_kernel_rings_when_tasks_wait_for_memory(tmp_path: Path) -> None:
    """A process reads a file over and over that does not fit its cgroup, and waits for each page to be found."""
    rung = asyncio.Event()
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.write(os.urandom(64 << 20))
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with (
        limited(16 << 20) as cgroup,
        pressure_alarm(
            Path("/proc/pressure/memory"), ["some 500 1000000", "some 1000 2000000"], rung.set
        ),
    ):
        reader = await asyncio.create_subprocess_exec(
            *("sh", "-c", "while :; do cat $0 > /dev/null || exit; done", str(file)),
            preexec_fn=cgroup.enter,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(60):
                await rung.wait()
        finally:
            os.killpg(reader.pid, 9)
            await reader.wait()


async def test_a_cgroup_that_goes_rings_no_more() -> None:
    unified = Path("/sys/fs/cgroup/unified")
    cgroup = (unified if unified.exists() else unified.parent) / f"memshare-test-{os.getpid()}"
    cgroup.mkdir()
    rung = 0

    def ring() -> None:
        nonlocal rung
        rung += 1

    try:
        with pressure_alarm(cgroup / "memory.pressure", ["some 200000 2000000"], ring):
            cgroup.rmdir()
            for _ in range(1000):  # turns of asyncio's loop
                await asyncio.sleep(0)
    finally:
        if cgroup.exists():
            cgroup.rmdir()
    assert rung <= 1


async def test_a_trigger_that_the_kernel_does_not_take_is_an_error() -> None:
    with (
        pytest.raises(HostError, match="/proc/pressure/memory: Invalid argument: some 5"),
        pressure_alarm(Path("/proc/pressure/memory"), ["some 4", "some 5"], lambda: None),
    ):
        pass
