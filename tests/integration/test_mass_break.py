# SPDX-License-Identifier: GPL-2.0-or-later
"""All guests write to what they share at once, within a memory limit that holds only while they share.

Fake guests with real engines, in a real cgroup with a real broker and a real daemon. Without the guard the kernel kills;
with it balloons have taken enough by then.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.lib.broker import Broker
from tests.lib.daemon import Daemon
from tests.lib.fakeguest import MIB
from tests.lib.vm import DEADLINE_SECONDS, until

from memshare.bench.cgroup import MemoryCgroup, limited
from memshare.clients.host import read_cgroup
from memshare.clients.qmp import read_domain

pytestmark = pytest.mark.full_hash

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ("a", "b", "c")
SHARED_MIB, FREE_MIB = 32, 48
SPARE_BYTES = 44 * MIB  # less than two guests un-shared
PACE_BYTES = 5 * MIB  # a second and guest: the spare memory lasts three seconds


class Fleet:
    """Fake guests that share all they can, in a cgroup with just enough memory for that."""

    def __init__(self, guests: list[asyncio.subprocess.Process], cgroup: MemoryCgroup) -> None:
        self.guests = guests
        self.cgroup = cgroup

    def write(self) -> None:
        """Have all guests begin to write."""
        for guest in self.guests:
            assert guest.stdin is not None
            guest.stdin.write(f"{PACE_BYTES}\n".encode())

    async def written(self) -> list[bool]:
        """Wait until each guest has written to everything, or was killed; whether it was not."""

        async def ends(guest: asyncio.subprocess.Process) -> bool:
            assert guest.stdout is not None
            return await guest.stdout.readline() == b"written\n"

        async with asyncio.timeout(DEADLINE_SECONDS):
            return list(await asyncio.gather(*map(ends, self.guests)))


async def shared_pages(monitors: Path) -> int:
    """Return how many pages all guests share."""
    domains = [await read_domain(monitors / f"{name}.sock") for name in GUESTS]
    assert all(domain.stats for domain in domains), domains
    return sum(domain.stats.shared_pages for domain in domains if domain.stats)


async def used_at_rest(cgroup: MemoryCgroup) -> int:
    """Return what is used once it falls no more: engines free what they have replaced a little later."""
    used = [read_cgroup(cgroup.path).used_bytes]

    async def fallen() -> int:
        await asyncio.sleep(1.0)  # what it may fall in
        used.append(read_cgroup(cgroup.path).used_bytes)
        return used[-2] - used[-1]

    await until(fallen, lambda bytes_: bytes_ < MIB // 4)
    return used[-1]


@asynccontextmanager
async def fleet(monitors: Path, broker: Broker) -> AsyncIterator[Fleet]:
    """Start guests, wait until they share, and bound their memory."""
    async with AsyncExitStack() as stack:
        cgroup = stack.enter_context(limited(4 << 30))
        guests = []
        for name in GUESTS:
            guest = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "tests.lib.fakeguest",
                    name,
                    str(monitors / f"{name}.sock"),
                ),
                *(str(broker.socket_path()), str(SHARED_MIB), str(FREE_MIB)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                preexec_fn=cgroup.enter,
                cwd=ROOT,
            )
            guests.append(guest)
            stack.push_async_callback(guest.wait)
            stack.callback(lambda guest=guest: guest.returncode is None and guest.kill())
        for guest in guests:
            assert guest.stdout is not None
            assert await guest.stdout.readline() == b"ready\n"
        everything = len(GUESTS) * SHARED_MIB * MIB // 4096
        await until(lambda: shared_pages(monitors), lambda shared: shared == everything)
        cgroup.limit(await used_at_rest(cgroup) + SPARE_BYTES)
        yield Fleet(guests, cgroup)


async def test_without_the_guard_the_kernel_kills(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker
) -> None:
    monitors = tmp_path_factory.mktemp("q")
    async with fleet(monitors, broker) as guests:
        guests.write()
        assert not all(await guests.written())
        assert guests.cgroup.oom_kills > 0


async def test_the_guard_acts_before_the_kernel_does(
    tmp_path_factory: pytest.TempPathFactory, broker: Broker
) -> None:
    directory = tmp_path_factory.mktemp("d")
    monitors = directory / "q"
    monitors.mkdir()
    async with fleet(monitors, broker) as guests:
        config: dict[str, Any] = {"connect": [], "qmp_dirs": [str(monitors)]}
        config["broker"] = str(broker.directory / "control.sock")
        daemon = Daemon(directory, cgroup=str(guests.cgroup.path), **config)
        async with daemon.running():
            view = await daemon.view_when(
                lambda view: (
                    all(domain["stats"] for domain in view["domains"])
                    and len(view["domains"]) == len(GUESTS)
                )
            )
            assert view["step"] == "calm", view["cause"]
            assert view["stake"]["largest_bytes"] == SHARED_MIB * MIB
            guests.write()
            assert await guests.written() == [True] * len(GUESTS)
            assert guests.cgroup.oom_kills == 0
            assert "headroom" in await daemon.logged("guard_stepped")
            await daemon.logged("balloon_set")
            # What was taken comes back once there is room again, also by a daemon that was killed meanwhile.
            assert await daemon.stop(signal.SIGKILL) != 0
        guests.cgroup.limit(4 << 30)
        daemon.configure(policy={"calm-seconds": 0.5})
        async with daemon.running():
            full = (SHARED_MIB + FREE_MIB) * MIB
            await daemon.logged("balloon_set", f"target_bytes={full}")
