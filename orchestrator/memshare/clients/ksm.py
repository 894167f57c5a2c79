# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own same-page merging: its knobs in /sys, its thread, whose memory it scans."""

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from memshare.clients import procfs
from memshare.errors import HostError, MeasurementError

KSM = Path("/sys/kernel/mm/ksm")
RUN_STOP, RUN_MERGE, RUN_UNMERGE = "0", "1", "2"
SCAN_SECONDS_MAX = 300.0


def read_knobs() -> dict[str, str]:
    """Everything that can be set; a choice such as `[none] scan-time` by what is chosen."""
    knobs = {}
    for path in sorted(KSM.iterdir()):
        if path.stat().st_mode & 0o200:
            text = path.read_text().strip()
            chosen = [word[1:-1] for word in text.split() if word.startswith("[")]
            knobs[path.name] = chosen[0] if chosen else text
    return knobs


def write_knobs(knobs: Mapping[str, str]) -> None:
    """Set those that differ.

    The advisor refuses other knobs while it is on, and sets some itself: it is off meanwhile. `run`
    comes last.
    """

    def write(name: str, value: str) -> None:
        if read_knobs().get(name) != value:
            (KSM / name).write_text(value)

    if "advisor_mode" in read_knobs():
        write("advisor_mode", "none")
    for name in sorted(knobs.keys() - {"advisor_mode", "run"}):
        write(name, knobs[name])
    for name in ("advisor_mode", "run"):
        if name in knobs:
            write(name, knobs[name])


@contextmanager
def preserved() -> Iterator[None]:
    """Give back what was merged and put all knobs back as they were, on every way out.

    One at a time on a host: a second one would take the first one's knobs for what was there before.
    """
    if not KSM.exists():
        raise HostError("this kernel has no KSM to compare with")
    with (KSM / "run").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError("another measurement is using KSM now", "wait for its end") from None
        before = read_knobs()
        try:
            yield
        finally:
            # Some knobs cannot be set while pages are merged.
            (KSM / "run").write_text(RUN_UNMERGE)
            write_knobs(before)


def pages_claimed() -> int:
    """How many pages the kernel says are saved on this host, those of zeros included."""
    saved = int((KSM / "pages_sharing").read_text())
    zeros = KSM / "ksm_zero_pages"  # Linux 6.5
    return saved + (int(zeros.read_text()) if zeros.exists() else 0)


def ksmd_pid() -> int:
    """Find the kernel's thread: a child of kthreadd, so that no program can pass for it."""
    for entry in procfs.PROC.iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue  # ended meanwhile
        name, _, rest = stat.rpartition(")")
        if name.endswith("(ksmd") and rest.split()[1] == "2":
            return int(entry.name)
    raise HostError("there is no ksmd")


def processes_marked() -> list[str]:
    """Processes whose memory ksmd would scan, as `PID (NAME)`."""
    found = []
    for entry in procfs.PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            lines = (entry / "ksm_stat").read_text().splitlines()
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue  # ended meanwhile
        if "ksm_mergeable: yes" in lines or "ksm_merge_any: yes" in lines:
            found.append(f"{entry.name} ({name})")
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
