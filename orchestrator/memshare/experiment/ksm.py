# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's KSM as an engine: as it comes, at full speed, with its advisor, and steered by Debian's ksmtuned.

Its knobs are the host's: they are what they were when the run has ended. ksmd's work is in nobody's cgroup, nor is
the memory that it keeps about pages: what a cgroup holds is to KSM's advantage by that much.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from memshare.bench.machine import spawn
from memshare.clients import ksm, ksm_marks, procfs
from memshare.errors import HostError
from memshare.experiment.engine import Engine, Figures, Lab
from memshare.experiment.leavings import KSMTUNED_PID
from memshare.experiment.plan import EngineKind

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: The kernel's defaults, whatever this host has been set to; older kernels have fewer.
KERNEL_KNOBS = {
    "advisor_max_cpu": "70",
    "advisor_max_pages_to_scan": "30000",
    "advisor_min_pages_to_scan": "500",
    "advisor_mode": "none",
    "advisor_target_scan_time": "200",
    "max_page_sharing": "256",
    "merge_across_nodes": "1",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "smart_scan": "1",
    "stable_node_chains_prune_millisecs": "2000",
    "use_zero_pages": "0",
}
#: With use_zero_pages ksmd frees the same for less CPU where there are many zeros: a rival at its best.
KNOBS: dict[EngineKind, Mapping[str, str]] = {
    EngineKind.KSM_DEFAULT: KERNEL_KNOBS,
    EngineKind.KSM_FULL: KERNEL_KNOBS
    | {"pages_to_scan": "100000", "sleep_millisecs": "0", "use_zero_pages": "1"},
    EngineKind.KSM_ADVISOR: KERNEL_KNOBS | {"advisor_mode": "scan-time", "use_zero_pages": "1"},
    EngineKind.KSMTUNED: KERNEL_KNOBS,
}
KSMTUNED = Path(os.environ.get("MEMSHARE_KSMTUNED", "/usr/sbin/ksmtuned"))
#: ksmtuned reckons with processes whose command line says so; this is a note in the guest's firmware, and means nothing.
SEEN_BY_KSMTUNED = ["-smbios", "type=11,value=-enable-kvm"]


class Before(NamedTuple):
    """Counters of the host when the run began."""

    cpu_ns: int
    scanned_pages: int | None
    full_scans: int


class Ksm(Engine):
    """ksmd, with knobs."""

    def __init__(self, lab: Lab, kind: EngineKind) -> None:
        """Touch nothing yet."""
        super().__init__(lab, kind)
        self._knobs = KNOBS[kind]
        self._before = Before(0, None, 0)
        self._pid = 0
        #: Knobs that nobody else may set meanwhile, as they are.
        self._kept: dict[str, str] = {}

    @classmethod
    def check(cls, kind: EngineKind, build: Path) -> None:
        """Look for the advisor, where it is used."""
        if not ksm.KSM.is_dir():
            raise HostError("this kernel has no KSM")
        if KNOBS[kind]["advisor_mode"] != "none" and "advisor_mode" not in ksm.read_knobs():
            raise HostError("this kernel's KSM has no advisor_mode", "Linux 6.8 has it")

    async def open(self) -> None:
        """Have KSM alone, and set its knobs."""
        self._stack.enter_context(ksm.preserved())
        ksm.refuse_other_marks()
        ksm_marks.refuse_tuner()
        self._pid = ksm.ksmd_pid()
        # The kernel refuses max_page_sharing and merge_across_nodes as long as a page is merged.
        ksm.write_knobs({"run": ksm.RUN_UNMERGE})
        known = ksm.read_knobs().keys()
        knobs = {name: value for name, value in self._knobs.items() if name in known}
        try:
            ksm.write_knobs({**knobs, "run": ksm.RUN_STOP})
        except OSError as error:
            raise HostError(f"KSM cannot be set: {(error.strerror or '').lower()}") from error
        self._kept = {**knobs, "run": ksm.RUN_STOP}
        if self._knobs["advisor_mode"] != "none":
            del self._kept["pages_to_scan"]  # the advisor's
        counters = ksm.read_counters()
        self._before = Before(procfs.cpu_ns(self._pid), counters.pages_scanned, counters.full_scans)

    async def start(self) -> None:
        """Let ksmd run."""
        ksm.write_knobs({"run": ksm.RUN_MERGE})
        self._kept["run"] = ksm.RUN_MERGE

    async def figures(self) -> Figures:
        """Read its counters."""
        now = ksm.read_counters()
        scanned = None
        if now.pages_scanned is not None and self._before.scanned_pages is not None:
            scanned = now.pages_scanned - self._before.scanned_pages
        # Without use_zero_pages a page of zeros is one more page that is equal to others.
        zero = now.zero_pages * PAGE_BYTES if self._knobs["use_zero_pages"] == "1" else None
        return Figures(
            scan_cpu_seconds=(procfs.cpu_ns(self._pid) - self._before.cpu_ns) / 1e9,
            saved_zero_bytes=zero,
            saved_content_bytes=now.pages_sharing * PAGE_BYTES,
            scanned_pages=scanned,
        )

    async def rounds(self) -> int | None:
        """Full scans so far."""
        return ksm.read_counters().full_scans - self._before.full_scans

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Have ksmd rest: the kernel returns from `run` when it does. Raises where somebody else has set a knob."""
        now = ksm.read_knobs()
        before = now["run"]
        for name, value in self._kept.items():
            if now[name] != value:
                raise HostError(
                    f"KSM's {name} was {value} and is {now[name]}: something else on this host steers KSM"
                )
        await asyncio.to_thread(ksm.write_knobs, {"run": ksm.RUN_STOP})
        try:
            yield
        finally:
            ksm.write_knobs({"run": before})


class Ksmtuned(Ksm):
    """ksmd, steered by the script of Debian's package ksmtuned with its configuration."""

    def __init__(self, lab: Lab, kind: EngineKind) -> None:
        """Touch nothing yet."""
        super().__init__(lab, kind)
        self._script = 0  # its process group
        self._loop = 0

    def arguments(self, name: str) -> list[str]:
        """Let the script see that guest."""
        return [*super().arguments(name), *SEEN_BY_KSMTUNED]

    @classmethod
    def check(cls, kind: EngineKind, build: Path) -> None:
        """Look for the script."""
        super().check(kind, build)
        if not KSMTUNED.exists():
            raise HostError(
                f"{KSMTUNED}: not there",
                "apt-get download ksmtuned, dpkg-deb -x it into a folder, and have MEMSHARE_KSMTUNED name the script there; "
                "or install it, and systemctl disable --now ksm ksmtuned, so that it does not steer this host's KSM",
            )

    async def open(self) -> None:
        """Let the script set what it likes."""
        await super().open()
        self._kept = {}

    async def start(self) -> None:
        """Run the script: it leaves a loop behind that starts and stops ksmd."""
        pid_file = self.lab.folder / KSMTUNED_PID
        log = self.lab.folder / "ksmtuned.log"
        process = await spawn(log, "env", f"PIDFILE={pid_file}", "bash", str(KSMTUNED))
        self._script = process.pid
        self._stack.callback(self._end)
        await process.wait()
        try:
            self._loop = int(pid_file.read_text())
        except (OSError, ValueError) as error:
            words = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise HostError(f"{KSMTUNED} did not start: {' '.join(words) or error}") from error

    async def figures(self) -> Figures:
        """Add what the script has used, with all programs that it ran."""
        figures = await super().figures()
        if not self._loop:
            return figures
        try:
            of_script = procfs.cpu_seconds(self._loop, with_children=True)
        except OSError as error:
            raise HostError(f"{KSMTUNED} has ended") from error
        return figures._replace(scan_cpu_seconds=figures.scan_cpu_seconds + of_script)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Stop the script too, so that it does not let ksmd run."""
        self._signal(signal.SIGSTOP)
        try:
            async with super().held():
                yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """Tell all processes of the script, which has a session of its own."""
        if self._script:
            with suppress(ProcessLookupError):
                os.killpg(self._script, number)

    def _end(self) -> None:
        self._signal(signal.SIGKILL)
