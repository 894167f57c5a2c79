# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk image whose requests can be held: a FUSE export of QEMU's storage daemon, which is stopped.

What has been asked for with O_DIRECT stays in flight meanwhile, its memory pinned by the kernel. Root.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lib.broker import wait_until

#: pread64, preadv and preadv2 of x86-64.
READS = {"17", "295", "327"}


class SlowDisk:
    """Made by `slow_disk`."""

    def __init__(self, path: Path, daemon: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._daemon = daemon

    def hold(self) -> None:
        """Answer no request any more."""
        self._daemon.send_signal(signal.SIGSTOP)

    def let_go(self) -> None:
        """Answer all of them."""
        self._daemon.send_signal(signal.SIGCONT)

    def is_read_by(self, pid: int) -> bool:
        """Whether a thread of that process waits for bytes of it. Others may wait for a look at the file only."""
        return any(self._is_read_by(thread) for thread in Path(f"/proc/{pid}/task").iterdir())

    def _is_read_by(self, thread: Path) -> bool:
        try:
            number, descriptor, *_ = (thread / "syscall").read_text().split()
            if number not in READS:
                return False
            return (thread / "fd" / str(int(descriptor, 16))).readlink() == self.path
        except (OSError, ValueError):
            return False  # it runs, or has ended


@contextmanager
def slow_disk(folder: Path, length_bytes: int) -> Iterator[SlowDisk]:
    """Export an image of zeros in that folder, writable for everybody."""
    image, path = folder / "slow.raw", folder / "slow"
    with image.open("wb") as file:
        file.truncate(length_bytes)
    path.touch()
    before = path.stat().st_dev
    daemon = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"file,node-name=disk,filename={image}"),
            "--export",
            f"fuse,id=slow,node-name=disk,mountpoint={path},writable=on,allow-other=on",
        ]
    )
    try:
        wait_until(lambda: path.stat().st_dev != before, "the disk is exported")
        path.chmod(0o666)
        yield SlowDisk(path, daemon)
    finally:
        daemon.send_signal(signal.SIGCONT)
        daemon.terminate()
        daemon.wait()
