# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel prints, taken apart."""

import mmap
import os

from memshare.clients import procfs

SMAPS = """\
7f00-7f10 rw-p 00001000 00:01 42                         /memfd:a name (deleted)
Size:                 64 kB
Pss:                  12 kB
VmFlags: rd wr mr
7f10-7f20 r--p 00000000 00:00 0
Size:                  4 kB
Pss:                   0 kB
THPeligible:           0
"""

SLABINFO = """\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables
vm_area_struct       873   1659    192   21    1 : tunables    0    0    0 : slabdata
anon_vma             10     39    104   39    1 : tunables    0    0    0 : slabdata
"""


def test_smaps() -> None:
    (first, figures), (second, empty) = procfs.parse_smaps(SMAPS.splitlines(keepends=True))
    assert first == procfs.Mapping(
        0x7F00, 0x7F10, "rw-p", 0x1000, "00:01", 42, "/memfd:a name (deleted)"
    )
    assert figures == {"Size": 65536, "Pss": 12288}
    assert (second.inode, second.path, second.length_bytes) == (0, "", 16)
    assert empty == {"Size": 4096, "Pss": 0}


def test_cpus_are_busy_but_for_idleness_and_disks() -> None:
    told = ["cpu  1 2 4 100 1000 8 16 32 1 2", "cpu0 1 2 4 100 1000 8 16 32 1 2", "ctxt 5"]
    assert procfs.parse_cpu_ticks(told) == procfs.CpuTicks(busy=63, total=1163)
    before = procfs.cpu_ticks()
    assert 0 < before.busy <= procfs.cpu_ticks().busy < before.total


def test_file_mappings_leave_out_anonymous_memory() -> None:
    lines = [
        "7f00-7f10 rw-p 00001000 00:01 42                         /memfd:a name (deleted)",
        "7f10-7f20 r--p 00000000 00:00 0 ",
        "7f20-7f30 rw-p 00000000 00:00 0                          [heap]",
        "ffff0000-ffff1000 r-xp 00000000 fe:01 1234               /usr/bin/0 12",
    ]
    found = procfs.parse_file_mappings("\n".join([*lines, ""]))
    assert found == procfs.FileMappings(
        starts=[0x7F00, 0xFFFF0000],
        ends=[0x7F10, 0xFFFF1000],
        files=[("00:01", 42), ("fe:01", 1234)],
        paths=["/memfd:a name (deleted)", "/usr/bin/0 12"],
    )


def test_file_mappings_are_those_of_whole_lines() -> None:
    found = procfs.file_mappings(os.getpid())
    whole = [m for m in procfs.mappings(os.getpid()) if m.inode]
    assert found.starts == [m.start for m in whole]
    assert found.files == [m.file for m in whole]
    assert found.paths == [m.path for m in whole]


def test_slabinfo_counts_live_objects() -> None:
    assert procfs.parse_slabinfo(SLABINFO.splitlines()) == {
        "vm_area_struct": 873 * 192,
        "anon_vma": 1040,
    }


def test_own_process() -> None:
    me = os.getpid()
    assert procfs.meminfo()["MemTotal"] > 1 << 20
    assert procfs.status(me)["VmPTE"] > 0
    assert procfs.smaps_rollup(me)["Pss"] > 0
    assert procfs.threads(me) >= 1
    assert procfs.cpu_seconds(me) > 0


def test_allocated_bytes_counts_pages_that_no_table_shows() -> None:
    file = os.memfd_create("memshare-test")
    try:
        os.ftruncate(file, 10 * 4096)
        os.pwrite(file, b"x" * 8192, 0)
        with mmap.mmap(file, 10 * 4096) as memory:
            assert memory[9 * 4096] == 0  # a hole, read through the mapping, is allocated by that
            inode = os.fstat(file).st_ino
            found = [m for m in procfs.mappings(os.getpid()) if m.inode == inode]
            assert len(found) == 1
            assert procfs.allocated_bytes(os.getpid(), found[0].start, found[0].end) == 3 * 4096
    finally:
        os.close(file)
