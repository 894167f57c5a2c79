# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that must not share, or not contents: each runs, and says why."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.lib.vm import Stats, Vm, plugin_arguments, running, until

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="locks or mounts: needs root")
PLUGIN = plugin_arguments(socket="/nowhere")


def is_refused(stats: Stats) -> bool:
    """Whether the guest shares nothing, and the reason is there."""
    return bool(stats["state"] == "refused" and stats["refusal"] != "")


def shares_contents(stats: Stats) -> bool:
    """Whether nothing but the missing broker is in the way."""
    return bool(stats["state"] == "waiting-for-broker" and stats["mode"] == "content")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-machine", "mem-merge=off"], "mem-merge=off"),
        pytest.param(["-overcommit", "mem-lock=on"], "memory is locked", marks=NEEDS_ROOT),
        (
            ["-machine", "memory-backend=m", "-object", "memory-backend-memfd,id=m,size=64M"],
            "shared with other processes",
        ),
        (
            [
                *("-machine", "memory-backend=m"),
                *("-object", "memory-backend-memfd,id=m,size=64M,share=off"),
            ],
            "backed by a file",
        ),
        (
            [
                *("-S", "-machine", "memory-backend=m", "-object"),
                "memory-backend-memfd,id=m,size=64M,share=off,hugetlb=on,hugetlbsize=2M,reserve=off",
            ],
            "hugetlbfs",
        ),
        (
            [
                *("-machine", "memory-backend=m"),
                *("-object", "memory-backend-ram,id=m,size=64M,merge=off"),
            ],
            "merge=off",
        ),
        (["-incoming", "defer"], "incoming migration"),
        (["-icount", "shift=1,rr=record,rrfile=/dev/null"], "recorded or replayed"),
        (["-machine", "none", "-m", "0"], "no RAM from a memory backend"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_guest_that_cannot_share_runs_and_says_why(
    arguments: Sequence[str], reason: str
) -> None:
    async with running(*PLUGIN, *arguments) as vm:
        stats = await vm.stats_when(is_refused)
        assert reason in stats["refusal"]
        assert stats["mode"] == "off"
        assert stats["ram_bytes"] == 0
        assert await vm.quit() == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-device", "virtio-balloon-pci,free-page-reporting=on"], "free page reporting"),
        (
            [
                *("-m", "64M,maxmem=1G", "-object", "memory-backend-ram,id=v,size=128M"),
                *("-device", "virtio-mem-pci,memdev=v,requested-size=0"),
            ],
            "virtio-mem",
        ),
    ],
    ids=["free-page-reporting", "virtio-mem"],
)
async def test_a_guest_that_discards_memory_shares_zero_pages_only(
    arguments: Sequence[str], reason: str
) -> None:
    async with running(*PLUGIN, *arguments) as vm:
        stats = await vm.stats()
        assert stats["mode"] == "zero"
        assert reason in stats["refusal"]


async def test_a_balloon_that_reports_nothing_is_no_reason() -> None:
    async with running(*PLUGIN, "-device", "virtio-balloon-pci") as vm:
        await vm.stats_when(shares_contents)


async def test_a_hotplugged_balloon_that_reports_is_seen() -> None:
    async with running(*PLUGIN) as vm:
        await vm.stats_when(shares_contents)
        await vm.execute(
            "device_add", driver="virtio-balloon-pci", id="balloon", free_page_reporting=True
        )
        stats = await vm.stats_when(lambda stats: bool(stats["mode"] == "zero"))
        assert "free page reporting" in stats["refusal"]


async def test_sharing_starts_when_the_incoming_migration_has_finished(tmp_path: Path) -> None:
    async with running(*PLUGIN, "-incoming", "defer") as destination, running("-S") as source:
        await destination.stats_when(is_refused)
        uri = f"unix:{tmp_path}/migration"
        await destination.execute("migrate-incoming", uri=uri)
        await source.execute("migrate", uri=uri)
        stats = await destination.stats_when(shares_contents)
        assert stats["ram_bytes"] == 64 << 20


async def test_memory_that_comes_is_registered_and_let_go() -> None:
    async with running(*PLUGIN) as vm:
        await vm.stats_when(shares_contents)
        await vm.execute("object-add", qom_type="memory-backend-ram", id="more", size=32 << 20)
        await vm.stats_when(lambda stats: bool(stats["ram_bytes"] == 96 << 20))
        await vm.execute("object-del", id="more")
        await vm.stats_when(lambda stats: bool(stats["ram_bytes"] == 64 << 20))


@pytest.fixture
def image_on_overlay(tmp_path: Path) -> Iterator[Path]:
    """Make an image on an overlay file system, which is not on the list of those that pin."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", merged], check=True)
    try:
        image = merged / "disk"
        image.write_bytes(bytes(1 << 20))
        yield image
    finally:
        subprocess.run(["umount", merged], check=True)


async def add_disk(vm: Vm, image: Path, *, direct: bool) -> None:
    """Open an image, with or without O_DIRECT."""
    await vm.execute(
        "blockdev-add",
        driver="file",
        node_name="disk",
        filename=str(image),
        cache={"direct": direct},
    )


@NEEDS_ROOT
async def test_direct_io_on_an_unknown_file_system_is_seen_and_its_end_too(
    image_on_overlay: Path,
) -> None:
    async with running(*PLUGIN) as vm:
        await vm.stats_when(shares_contents)
        await add_disk(vm, image_on_overlay, direct=True)
        stats = await vm.stats_when(is_refused)
        assert f"{image_on_overlay} is open with O_DIRECT" in stats["refusal"]
        await vm.execute("blockdev-del", node_name="disk")
        await vm.stats_when(shares_contents)


@NEEDS_ROOT
async def test_buffered_io_on_an_unknown_file_system_is_no_reason(image_on_overlay: Path) -> None:
    disk = f"driver=file,node-name=disk,filename={image_on_overlay}"
    async with running(*PLUGIN, "-blockdev", disk) as vm:
        stats = await vm.stats()
        assert shares_contents(stats)
    async with running(*PLUGIN, "-blockdev", f"{disk},cache.direct=on") as vm:
        stats = await vm.stats()
        assert is_refused(stats)


async def test_a_refused_guest_takes_no_memory_when_asked_for_contents() -> None:
    async with running(*PLUGIN, "-machine", "mem-merge=off") as vm:
        await vm.stats_when(is_refused)
        await vm.set("mode", "content")

        async def stats_and_status() -> tuple[Stats, bool]:
            status = await vm.execute("query-status")
            return await vm.stats(), bool(status["running"])

        stats, _ = await until(stats_and_status, lambda seen: seen[1])
        assert stats["mode"] == "off"
        assert stats["ram_bytes"] == 0
