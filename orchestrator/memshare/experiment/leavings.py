# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run would leave on the host if this process were killed outright: written down before, taken away at the next go.

Guests, broker and daemon end with this process, by the kernel's hand. What is set on the host, and files, do not.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memshare.bench import rig
from memshare.clients import ksm, procfs
from memshare.experiment.record import Record, read_file, write_file

NAME = "leavings.json"
KSMTUNED_PID = "ksmtuned.pid"  # in the run's folder of work


class Leavings(Record, frozen=True, kw_only=True):
    """folder of work, cgroup, and what was set on the host before the run. ksm None: a kernel without it."""

    folder: str
    cgroup: str
    max_map_count: str
    ksm: dict[str, str] | None


@contextmanager
def noted(experiment: Path, folder: Path, cgroup: Path) -> Iterator[None]:
    """Have it written down while things are set, and until all has been put back."""
    path = experiment / NAME
    try:
        knobs = ksm.read_knobs()
    except OSError:
        knobs = None
    write_file(
        path,
        Leavings(
            folder=str(folder),
            cgroup=str(cgroup),
            max_map_count=rig.MAX_MAP_COUNT.read_text().strip(),
            ksm=knobs,
        ),
    )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def take_away(experiment: Path) -> None:
    """Put the host back as it was before the run that was killed, if one was."""
    path = experiment / NAME
    if not path.exists():
        return
    left = read_file(path, Leavings)
    _end_ksmtuned(Path(left.folder) / KSMTUNED_PID)
    if left.ksm is not None:
        with ksm.locked():
            if ksm.read_knobs() != left.ksm:
                (ksm.KSM / "run").write_text(ksm.RUN_UNMERGE)
                ksm.write_knobs(left.ksm)
    if rig.MAX_MAP_COUNT.read_text().strip() != left.max_map_count:
        rig.MAX_MAP_COUNT.write_text(left.max_map_count)
    with suppress(OSError):
        Path(left.cgroup).rmdir()
    shutil.rmtree(left.folder, ignore_errors=True)
    path.unlink()


def _end_ksmtuned(pid_file: Path) -> None:
    """End the script, which would go on setting knobs for ever; nobody else who has its number now."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if b"ksmtuned" in (procfs.PROC / str(pid) / "cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
