# SPDX-License-Identifier: GPL-2.0-or-later
"""memshare as an engine: plugin and broker, and the daemon where the plan gives no scan rate.

Broker and daemon are in the guests' cgroup: what they hold counts.
"""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from memshare.bench.daemon import configuration, open_daemon
from memshare.bench.fleet import start_broker
from memshare.bench.machine import end_process
from memshare.clients import procfs
from memshare.clients.monitor import Monitor
from memshare.errors import HostError, MemshareError, UnreachableError
from memshare.experiment.engine import Engine, Figures, Lab, refuse_ksmd
from memshare.experiment.guest import Guest
from memshare.experiment.plan import EngineKind
from memshare.model import PLUGIN_FILE, Mode, PageStats

PLUGIN = Path("qemu-plugin", "plugin", PLUGIN_FILE)
BROKER = Path("qemu-plugin", "broker", "memshared")
GROUP = "experiment"
REST_SECONDS = 30.0
STILL_LOOKS = 6


class Memshare(Engine):
    """Equal contents and zeros, or zeros only."""

    def __init__(self, lab: Lab, kind: EngineKind) -> None:
        """Start nothing yet."""
        super().__init__(lab, kind)
        self._mode = Mode.ZERO if kind is EngineKind.MEMSHARE_ZERO else Mode.CONTENT
        self._is_started = False
        self._broker: asyncio.subprocess.Process | None = None
        self._daemon: asyncio.subprocess.Process | None = None
        self._last: dict[str, PageStats] = {}

    @property
    def broker_pid(self) -> int | None:
        """The broker."""
        return self._broker.pid if self._broker else None

    def arguments(self, name: str) -> list[str]:
        """Load the plugin, which shares at once only when it is time."""
        rate = self.lab.plan.scan_rate_pages
        options = f"socket={self.lab.folder}/broker/{GROUP}.sock,group={GROUP}"
        if not self._is_started:
            options += ",mode=off,scan-rate=0"
        else:
            options += f",mode={self._mode}" + (f",scan-rate={rate}" if rate else "")
        return ["-plugin", f"{self.lab.folder}/{PLUGIN_FILE},{options}"]

    @classmethod
    def check(cls, kind: EngineKind, build: Path) -> None:
        """Look for plugin and broker."""
        for file in (build / PLUGIN, build / BROKER):
            if not file.exists():
                raise MemshareError(f"{file}: not there", "run ./dev build")

    async def open(self) -> None:
        """Start the broker."""
        refuse_ksmd()
        shutil.copyfile(self.lab.build / PLUGIN, self.lab.folder / PLUGIN_FILE)
        self._broker = await start_broker(
            self.lab.folder, self.lab.build, GROUP, self.lab.cgroup.enter
        )
        self._stack.push_async_callback(end_process, self._broker)

    async def start(self) -> None:
        """Have the guests share, at the plan's rate or steered by a daemon."""
        self._is_started = True
        rate = self.lab.plan.scan_rate_pages
        for guest in self.lab.running:
            await guest.control.set("mode", self._mode)
            if rate:
                await guest.control.set("scan-rate", rate)
        if not rate:
            await self._start_daemon()

    async def _start_daemon(self) -> None:
        folder = self.lab.folder
        bound = self.lab.cgroup.path if self.lab.plan.budget_bytes else ""
        config = configuration(folder, folder / "broker" / "control.sock", GROUP, cgroup=bound)
        self._daemon = await self._stack.enter_async_context(
            open_daemon(folder, config, self.lab.cgroup.enter)
        )

    async def _stats(self) -> dict[str, PageStats]:
        """Read all guests' figures; those of one that ends meanwhile are its last ones."""

        async def one(guest: Guest) -> PageStats | None:
            try:
                return await guest.control.stats()
            except UnreachableError:
                if not await guest.has_ended():
                    raise
                return None

        guests = self.lab.running
        found = await asyncio.gather(*(one(guest) for guest in guests))
        now = {
            guest.name: stats
            for guest, stats in zip(guests, found, strict=True)
            if stats is not None
        }
        for name, stats in now.items():
            if stats.refusal:
                raise HostError(f"guest {name} does not share: {stats.refusal}")
        self._last.update(now)
        return now

    async def figures(self) -> Figures:
        """Add up what engines, broker and daemon say. What a guest that has ended did still counts."""
        now = (await self._stats()).values()
        ever = self._last.values()
        cpu_seconds = sum(stats.scan_cpu_ns for stats in ever) / 1e9
        for process, what in ((self._broker, "broker"), (self._daemon, "daemon")):
            if process is not None:
                if process.returncode is not None:
                    raise MemshareError(f"the {what} ended with {process.returncode}")
                cpu_seconds += procfs.cpu_seconds(process.pid)
        return Figures(
            scan_cpu_seconds=cpu_seconds,
            saved_zero_bytes=sum(stats.saved_zero_bytes for stats in now),
            saved_content_bytes=sum(stats.saved_content_bytes for stats in now),
            scanned_pages=sum(stats.scanned_pages for stats in ever),
            breaks=sum(stats.breaks for stats in ever),
            overhead_bytes=sum(stats.overhead_bytes for stats in now),
        )

    async def rounds(self) -> int | None:
        """Passes of the guest that has made fewest."""
        return min((stats.passes for stats in (await self._stats()).values()), default=None)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Pause all engines, and keep the daemon from setting rates meanwhile."""
        self._stop_daemon(signal.SIGSTOP)
        try:
            rates = {name: stats.scan_rate_pages for name, stats in (await self._stats()).items()}
            guests = [guest for guest in self.lab.running if guest.name in rates]
            try:
                await asyncio.gather(*(_pause(guest.control) for guest in guests))
                yield
            finally:
                for guest in guests:
                    try:
                        await guest.control.set("scan-rate", rates[guest.name])
                    except UnreachableError:
                        if not await guest.has_ended():
                            raise
        finally:
            self._stop_daemon(signal.SIGCONT)

    def _stop_daemon(self, number: int) -> None:
        if self._daemon is not None:
            with suppress(ProcessLookupError):
                self._daemon.send_signal(number)


async def _pause(monitor: Monitor) -> None:
    """Pause an engine and wait until its figures stand still."""
    await monitor.set("scan-rate", 0)
    last, looks = None, 0
    async with asyncio.timeout(REST_SECONDS):
        while True:
            stats = await monitor.stats()
            figures = (
                stats.shared_pages,
                stats.zero_pages,
                stats.merged_pages,
                stats.rebuilt_pages,
                stats.saved_content_bytes,
            )
            # What moves within the store shows in none of them, and rests between windows are up to 10 ms.
            looks = looks + 1 if figures == last and stats.state in ("paused", "off") else 0
            if looks == STILL_LOOKS:
                return
            last = figures
            await asyncio.sleep(0.02)
