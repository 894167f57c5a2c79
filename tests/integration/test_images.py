# SPDX-License-Identifier: GPL-2.0-or-later
"""Each image boots, its loads work, and what is in its memory is what was written there. Root; builds what is missing."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from memshare.bench.machine import GUEST_UID, Boot
from memshare.experiment import image
from memshare.experiment.guest import Guest, Report, start
from memshare.experiment.plan import Load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

BOOT_SECONDS = 600.0
LOAD_SECONDS = 300.0
PLAIN = (Load.CACHE, Load.COMPILE, Load.ALLOCATE)
#: What an image can do.
IMAGES = {
    "minimal": PLAIN,
    "minimal@trixie": PLAIN,
    "zero-on-free": PLAIN,
    "webserver": (*PLAIN, Load.WEB),
    "webserver@trixie": (Load.WEB,),
    "database": (*PLAIN, Load.DATABASE),
    "database@trixie": (Load.DATABASE,),
    "same-media-a": (Load.WEB, Load.DATABASE),
    "same-media-b": (Load.WEB, Load.DATABASE),
    "wine": PLAIN,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a guest's user may reach its files."""
    path = Path(tempfile.mkdtemp(prefix="memshare-", dir="/var/tmp"))
    path.chmod(0o755)
    for made in (path, path / "qmp", path / "own"):
        made.mkdir(exist_ok=True)
        os.chown(made, GUEST_UID, GUEST_UID)
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def booted(name: str, folder: Path) -> AsyncIterator[Guest]:
    """A guest of that image, with as little RAM as the image says is enough."""
    found = image.ensure(name)
    guest = await start(
        folder,
        "guest",
        found.min_ram_bytes,
        Boot(found.kernel, found.initrd, found.disk, found.kernel_options),
        accel="tcg",
        mem_merge=False,
        arguments=(),
        enter=lambda: None,
    )
    try:
        await guest.begin()
        await guest.boot(BOOT_SECONDS)
        yield guest
    finally:
        await guest.end()


async def report_until(guest: Guest, is_so: Callable[[Report], bool]) -> Report:
    """Ask until it is so."""
    async with asyncio.timeout(LOAD_SECONDS):
        while not is_so(report := await guest.report()):
            await asyncio.sleep(0.5)
    return report


@pytest.mark.parametrize("name", IMAGES)
async def test_an_image_boots_and_does_its_loads(name: str, folder: Path) -> None:
    async with booted(name, folder) as guest:
        state = await guest.agent.run("/usr/bin/systemctl", "is-system-running")
        failed = await guest.agent.run("/usr/bin/systemctl", "--failed", "--no-legend")
        assert (state.output.strip(), failed.output) == ("running", "")
        await guest.keep_integrity(16 << 20)
        for load in IMAGES[name]:
            await guest.load(load)
            report = await report_until(guest, lambda report: report.operations > 0)
            assert (report.load, report.integrity) == (load, "ok")
        await guest.load(Load.IDLE)
        assert await guest.touch(0.8) >= 0.75
        last = await report_until(guest, lambda report: report.longest_stall_us is not None)
        assert (last.load, last.integrity) == ("idle", "ok")


async def test_freed_memory_is_cleared_where_that_is_promised(folder: Path) -> None:
    async with booted("zero-on-free", folder) as guest:
        options = await guest.agent.run("/bin/cat", "/proc/cmdline")
        assert "init_on_free=1" in options.output.split()
        await guest.touch(0.9)
        with Path(f"/proc/{guest.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(guest.region.start)
            zero = sum(not any(memory.read(4096)) for _ in range(guest.region.length_bytes // 4096))
        assert zero * 4096 > guest.region.length_bytes // 3


async def test_windows_programs_stay_in_wine(folder: Path) -> None:
    async with booted("wine", folder) as guest:
        async with asyncio.timeout(LOAD_SECONDS):
            while True:
                maps = await guest.agent.run(
                    "/bin/sh", "-c", "cat /proc/[0-9]*/maps 2>/dev/null | grep -c '\\.dll'"
                )
                if int(maps.output) > 100:
                    break
                await asyncio.sleep(1)
        assert await guest.agent.output_of(
            "/bin/sh", "-c", "grep -l services.exe /proc/[0-9]*/comm"
        )
