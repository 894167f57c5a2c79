# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's side of each second of a run."""

import asyncio

from memshare.clients import procfs
from memshare.clients.host import parse_pressure, pressure_file, read_cgroup
from memshare.experiment.engine import Engine, Lab
from memshare.experiment.record import Lines, Sample
from memshare.experiment.stage import Stage

SAMPLE_SECONDS = 1.0


class Sampler:
    """Writes down a sample each second."""

    def __init__(self, lab: Lab, engine: Engine, stage: Stage, lines: Lines) -> None:
        """Begin to count now what the host only counts since its start."""
        self._lab = lab
        self._engine = engine
        self._stage = stage
        self._lines = lines
        self._pressure = pressure_file(lab.cgroup.path)
        self._psi_before = self._read_psi()
        self._pss: dict[str, int] = {}
        self._turn = 0
        self.last: Sample | None = None

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.take()
            await asyncio.sleep(SAMPLE_SECONDS - self._stage.now % SAMPLE_SECONDS)

    async def take(self) -> Sample:
        """Sample once."""
        figures = await self._engine.figures()
        await asyncio.to_thread(self._read_pss)
        memory = procfs.meminfo()
        held = read_cgroup(self._lab.cgroup.path)
        psi = self._read_psi()
        up = [guest for guest in self._lab.running if guest.is_up]
        sample = Sample(
            seconds=round(self._stage.now, 3),
            phase=self._stage.phase,
            guests_up=len(up),
            ram_given_bytes=sum(guest.ram_bytes for guest in up),
            cgroup_bytes=held.total_bytes,
            cgroup_kernel_bytes=held.kernel_bytes,
            cgroup_cache_bytes=held.clean_cache_bytes,
            used_bytes=held.used_bytes,
            host_used_bytes=memory["MemTotal"] - memory["MemAvailable"],
            pss_bytes=sum(self._pss.values()),
            saved_zero_bytes=figures.saved_zero_bytes,
            saved_content_bytes=figures.saved_content_bytes,
            scan_cpu_seconds=round(figures.scan_cpu_seconds, 4),
            scanned_pages=figures.scanned_pages,
            breaks=figures.breaks,
            psi_some_seconds=self._psi_since("some", psi),
            psi_full_seconds=self._psi_since("full", psi),
        )
        self._lines.append(sample)
        self.last = sample
        return sample

    def _read_pss(self) -> None:
        """Read one guest's, in turn: the kernel walks all its page tables for it, which all at once would be felt."""
        running = self._lab.running
        self._pss = {guest.name: self._pss.get(guest.name, 0) for guest in running}
        if running:
            self._turn = (self._turn + 1) % len(running)
            guest = running[self._turn]
            try:
                self._pss[guest.name] = procfs.smaps_rollup(guest.pid)["Pss"]
            except (OSError, KeyError):
                self._pss.pop(guest.name, None)  # it is ending

    def _read_psi(self) -> dict[str, int]:
        try:
            return parse_pressure(self._pressure.read_text().splitlines())
        except OSError:
            return {}  # a kernel without PSI

    def _psi_since(self, kind: str, now: dict[str, int]) -> float | None:
        if kind not in now or kind not in self._psi_before:
            return None
        return (now[kind] - self._psi_before[kind]) / 1e9
