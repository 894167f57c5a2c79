# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own same-page merging: its knobs in /sys, its thread, whose memory it scans."""

import fcntl
import mmap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from memshare.clients import procfs
from memshare.errors import HostError, MeasurementError
from memshare.model import KsmCounters, KsmStats

KSM = Path("/sys/kernel/mm/ksm")
RUN_STOP, RUN_MERGE, RUN_UNMERGE = "0", "1", "2"
RUN_OFFLINE = 4  # the kernel's own, while memory goes offline
ITEM_BYTES = 64  # what the kernel keeps about a page
SCAN_SECONDS_MAX = 300.0


def read_knobs() -> dict[str, str]:
    """Everything that can be set; a choice such as `[none] scan-time` by what is chosen."""
    knobs = {}
    for path in sorted(KSM.iterdir()):
        if path.stat().st_mode & 0o200:
            text = path.read_text().strip()
            chosen = [word[1:-1] for word in text.split() if word.startswith("[")]
            knobs[path.name] = chosen[0] if chosen else text
    if "run" in knobs:
        knobs["run"] = str(int(knobs["run"]) & ~RUN_OFFLINE)
    return knobs


def write_knobs(knobs: Mapping[str, str]) -> None:
    """Set those that differ; `run` comes last.

    The advisor refuses a pages_to_scan while it is on: it is off meanwhile. To turn it off and on makes it forget
    what it has learned, so nothing else does.
    """

    def write(name: str, value: str) -> None:
        if read_knobs().get(name) != value:
            (KSM / name).write_text(value)

    if "pages_to_scan" in knobs and "advisor_mode" in read_knobs():
        write("advisor_mode", "none")
    for name in sorted(knobs.keys() - {"advisor_mode", "run"}):
        write(name, knobs[name])
    for name in ("advisor_mode", "run"):
        if name in knobs:
            write(name, knobs[name])


@contextmanager
def locked() -> Iterator[None]:
    """Have KSM for this process alone, as far as programs of memshare go; raises HostError.

    One at a time on a host: a second one would take the first one's knobs for what was there before.
    """
    try:
        lock = (KSM / "run").open()
    except OSError as error:
        raise HostError("this kernel has no KSM") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(
                "another measurement or daemon is using KSM now", "wait for its end"
            ) from None
        yield


@contextmanager
def preserved() -> Iterator[None]:
    """Give back what was merged and put all knobs back as they were, on every way out."""
    with locked():
        before = read_knobs()
        try:
            yield
        finally:
            # Some knobs cannot be set while pages are merged.
            (KSM / "run").write_text(RUN_UNMERGE)
            write_knobs(before)


def read_counters() -> KsmCounters:
    """Read what KSM has done so far; HostError without KSM."""

    def read(name: str) -> int | None:
        try:
            return int((KSM / name).read_text())
        except FileNotFoundError:
            return None

    try:
        gauges = {
            name: int((KSM / name).read_text())
            for name in "pages_shared pages_sharing pages_unshared pages_volatile full_scans".split()
        }
        counters = KsmCounters(
            **gauges,
            zero_pages=read("ksm_zero_pages") or 0,  # Linux 6.5
            pages_scanned=read("pages_scanned"),  # Linux 6.6
            profit_bytes=0,
        )
        profit = read("general_profit")  # Linux 6.4
    except (OSError, ValueError) as error:
        raise HostError(f"{KSM}: {error}") from error
    if profit is None:
        profit = counters.saved_pages * mmap.PAGESIZE - counters.known_pages * ITEM_BYTES
    return msgspec.structs.replace(counters, profit_bytes=profit)


def pages_claimed() -> int:
    """How many pages the kernel says are saved on this host, those of zeros included."""
    return read_counters().saved_pages


def parse_stat(text: str) -> KsmStats:
    """Parse /proc/PID/ksm_stat (Linux 6.1); what the kernel does not tell yet is 0."""
    figures = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            figures[name] = int(value)
    return KsmStats(
        merging_pages=figures.get("ksm_merging_pages", 0),
        zero_pages=figures.get("ksm_zero_pages", 0),
        rmap_items=figures.get("ksm_rmap_items", 0),
        profit_bytes=figures.get("ksm_process_profit", 0),
    )


def read_stat(pid: int) -> KsmStats | None:
    """Read what KSM says of a process; None for one that has ended, or where the kernel says nothing."""
    try:
        return parse_stat((procfs.PROC / str(pid) / "ksm_stat").read_text())
    except OSError:
        return None


def ksmd_pid() -> int:
    """Find the kernel's thread: a child of kthreadd, so that no program can pass for it."""
    for entry in procfs.PROC.iterdir():
        try:
            stat = (entry / "stat").read_text(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue  # ended meanwhile
        name, _, rest = stat.rpartition(")")
        if name.endswith("(ksmd") and rest.split()[1] == "2":
            return int(entry.name)
    raise HostError("there is no ksmd")


def tells_marks() -> bool:
    """Whether this kernel says in ksm_stat if memory is marked; older ones do not."""
    try:
        return "ksm_mergeable:" in (procfs.PROC / "self" / "ksm_stat").read_text()
    except FileNotFoundError:
        return False


def is_marked(pid: int) -> bool:
    """Whether ksmd would scan memory of a process; raises OSError when that cannot be seen.

    Older kernels tell in smaps only, a flag a mapping, and walk all page tables for it.
    """
    folder = procfs.PROC / str(pid)
    try:
        lines = (folder / "ksm_stat").read_text().splitlines()
    except FileNotFoundError:  # before Linux 6.1
        lines = ["nothing"]
    if not lines:
        return False  # it has no memory: a thread of the kernel, or it is ending
    if any(line.startswith("ksm_mergeable:") for line in lines):
        return "ksm_mergeable: yes" in lines or "ksm_merge_any: yes" in lines
    with (folder / "smaps").open(errors="replace") as smaps:
        return any(line.startswith("VmFlags:") and "mg" in line.split() for line in smaps)


def processes_marked() -> list[str]:
    """Processes whose memory ksmd would scan, as `PID (NAME)`."""
    found = []
    for entry in procfs.PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if is_marked(int(entry.name)):
                found.append(
                    f"{entry.name} ({(entry / 'comm').read_text(errors='replace').strip()})"
                )
        except OSError:
            continue  # ended meanwhile
    return found


def refuse_other_marks() -> None:
    """Raise where ksmd would scan memory of others."""
    if marked := processes_marked():
        raise HostError(
            f"process {marked[0]} has memory marked for KSM, which ksmd would scan too",
            "stop it, or start QEMU with -machine mem-merge=off",
        )


class FullScans:
    """Has ksmd make one full scan at a time, without a rest inside it.

    A batch ends with a full scan at the latest; so batches without bound are full scans. Between two, ksmd
    sleeps for an hour, from which a change of sleep_millisecs wakes it. Within `preserved` only.
    """

    SLEEPS = ("3600000", "3600001")

    def __init__(self, knobs: Mapping[str, str]) -> None:
        """Set the other knobs; nothing is scanned yet."""
        self.pid = ksmd_pid()
        self._turn = 0
        write_knobs({**knobs, "run": RUN_STOP})
        write_knobs({"pages_to_scan": str(1 << 30), "sleep_millisecs": self.SLEEPS[0]})

    def step(self) -> int:
        """One full scan; CPU nanoseconds of ksmd."""
        scans, before_ns = self._scans(), procfs.cpu_ns(self.pid)
        deadline = time.monotonic() + SCAN_SECONDS_MAX
        last_ns = before_ns
        self._wake()
        write_knobs({"run": RUN_MERGE})
        looks = 0
        while self._scans() == scans:
            time.sleep(0.002)
            looks += 1
            if time.monotonic() > deadline:
                raise MeasurementError(f"ksmd made no full scan in {SCAN_SECONDS_MAX:.0f} s")
            if looks % 250 == 0:
                if procfs.cpu_ns(self.pid) == last_ns:
                    self._wake()  # it had not gone to sleep yet when it was woken
                last_ns = procfs.cpu_ns(self.pid)
        time.sleep(0.02)  # it tells that it is through, and then goes to sleep
        return procfs.cpu_ns(self.pid) - before_ns

    def _wake(self) -> None:
        self._turn = 1 - self._turn
        write_knobs({"sleep_millisecs": self.SLEEPS[self._turn]})

    @staticmethod
    def _scans() -> int:
        return int((KSM / "full_scans").read_text())
