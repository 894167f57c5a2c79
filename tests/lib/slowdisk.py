# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk image whose requests can be held: a FUSE export of QEMU's storage daemon, which is stopped.

What has been asked for with O_DIRECT stays in flight meanwhile, its memory pinned by the kernel. Root.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lib.broker import wait_until


class SlowDisk:
    """Made by `slow_disk`."""

    def __init__(self, path: Path, daemon: subprocess.Popen[bytes], waiting: Path) -> None:
        self.path = path
        self._daemon = daemon
        self._waiting = waiting

    def hold(self) -> None:
        """Answer no request any more."""
        self._daemon.send_signal(signal.SIGSTOP)

    def let_go(self) -> None:
        """Answer all of them."""
        self._daemon.send_signal(signal.SIGCONT)

    def has_waiting(self) -> bool:
        """Whether there are requests that were not answered."""
        return int(self._waiting.read_text()) > 0


@contextmanager
def slow_disk(folder: Path, length_bytes: int) -> Iterator[SlowDisk]:
    """Export an image of zeros in that folder, writable for everybody."""
    image, path, control = folder / "slow.raw", folder / "slow", folder / "fuse"
    with image.open("wb") as file:
        file.truncate(length_bytes)
    path.touch()
    control.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", control], check=True)
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
        waiting = control / str(os.minor(path.stat().st_dev)) / "waiting"
        yield SlowDisk(path, daemon, waiting)
    finally:
        daemon.send_signal(signal.SIGCONT)
        daemon.terminate()
        daemon.wait()
        subprocess.run(["umount", control], check=True)
