# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose memory ksmd would scan, and which other program steers it: kept up to date without reading all of /proc
at each look.

All processes are read now and then. In between those that have come since then are, so that the guest of somebody
else that has just started is noticed at the next look, and those of which it matters: guests and marked ones.
"""

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from memshare.clients import ksm, procfs
from memshare.errors import HostError

#: Programs that steer KSM. Only root can, so only root's count.
TUNERS = frozenset({"ksmtuned", "momd"})
INTERPRETERS = ("bash", "dash", "sh", "python")
ALL_SECONDS = 10.0
ALL_SECONDS_COSTLY = 60.0  # where the kernel has to walk page tables to tell


def processes() -> frozenset[int]:
    """Return the ids of all processes that run."""
    return frozenset(int(entry.name) for entry in procfs.PROC.iterdir() if entry.name.isdigit())


class Marks:
    """`marked` has the name of each process that is marked, by its id; `tuner` is the other program, if any."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.marked: Mapping[int, str] = {}
        self.tuner = ""
        self._is_costly = not ksm.tells_marks()
        self._all: frozenset[int] = frozenset()
        self._due = 0.0

    def look(self, guests: Collection[int]) -> None:
        """Bring both up to date; raises HostError when it cannot be known whether a process is marked."""
        now = processes()
        known = {pid: name for pid, name in self.marked.items() if pid in now}
        if time.monotonic() >= self._due:
            asked = self._all = now
            self._due = time.monotonic() + (ALL_SECONDS_COSTLY if self._is_costly else ALL_SECONDS)
            self.tuner = ""
        else:
            asked = now - self._all
            if not self._is_costly:
                asked |= now & (known.keys() | set(guests))
        for pid in asked:
            try:
                self._ask(pid, known)
            except (FileNotFoundError, ProcessLookupError):
                known.pop(pid, None)  # ended meanwhile
            except OSError as error:
                self._due = 0.0
                raise HostError(f"process {pid}: {error.strerror}: KSM needs root") from error
        self.marked = known

    def _ask(self, pid: int, known: dict[int, str]) -> None:
        folder = procfs.PROC / str(pid)
        name = (folder / "comm").read_text(errors="replace").strip()
        if tuner := _tuner(folder, name):
            self.tuner = tuner
        if self._is_costly and known.get(pid) == name:
            return  # QEMU does not take a mark back, and who does costs only what is not shared
        if ksm.is_marked(pid):
            known[pid] = name
        else:
            known.pop(pid, None)


def refuse_tuner() -> None:
    """Raise where another program steers KSM."""
    for pid in processes():
        folder = procfs.PROC / str(pid)
        try:
            tuner = _tuner(folder, (folder / "comm").read_text(errors="replace").strip())
        except OSError:
            continue  # ended meanwhile
        if tuner:
            raise HostError(
                f"{tuner}, process {pid}, steers KSM on this host", f"systemctl stop {tuner}"
            )


def _tuner(folder: Path, name: str) -> str:
    """Which of TUNERS a process is, by its name or as a script."""
    names = {name}
    if name.startswith(INTERPRETERS):
        arguments = (folder / "cmdline").read_bytes().split(b"\0")[:3]
        names |= {Path(argument.decode(errors="replace")).name for argument in arguments}
    found = names & TUNERS
    return found.pop() if found and folder.stat().st_uid == 0 else ""
