# SPDX-License-Identifier: GPL-2.0-or-later
"""A systemd of a test's own, as root: this host's files in a container, with memshare installed.

systemd-nspawn boots an overlay of the root file system, so that what is changed in there is gone afterwards. Python's
packages and sources are lent to it, not copied. No libvirtd starts in it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lib.broker import build_directory, wait_until

ROOT = Path(__file__).resolve().parents[2]
BOOT_SECONDS = WAIT_SECONDS = 120.0

# $1: a directory that is a mount afterwards; $2: what is to lie over the host's files.
CONTAINER = """
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/tree"
cp -a "$2/." "$1/upper/"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/tree"
shift 2
exec systemd-nspawn --register=no --keep-unit --quiet --boot --private-network --directory="$@"
"""

MEMSHARE = """#!/bin/sh
PYTHONPATH=/opt/memshare:/opt/packages exec /usr/bin/python3 -c 'from memshare.cli import main; main()' "$@"
"""


def procfs_name(pid: str) -> str:
    """The name of a process; nothing when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Systemd:
    """Booted from `with` on; powered off at its end."""

    def __init__(self, configuration: str = "") -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="memshare-systemd-"))
        self._files = self._directory / "files"
        self._install(configuration)
        self._log = (self._directory / "console").open("w+")
        tree = self._directory / "mount"
        tree.mkdir()
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation=private", "sh", "-c", CONTAINER, "sh"),
                *(tree, self._files, tree / "tree", "--bind=/dev/userfaultfd"),
                f"--bind-ro={ROOT / 'orchestrator'}:/opt/memshare",
                f"--bind-ro={sysconfig.get_path('purelib')}:/opt/packages",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _install(self, configuration: str) -> None:
        meson = Path(sys.executable).parent / "meson"
        subprocess.run(
            [
                *(meson, "install", "-C", build_directory(), "--no-rebuild", "--quiet"),
                *("--tags", "system", "--destdir", self._files),
            ],
            check=True,
        )
        files = {
            "usr/local/bin/memshare": MEMSHARE,
            "etc/memshare/memshare.toml": configuration,
        }
        for path, text in files.items():
            file = self._files / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (self._files / "usr/local/bin/memshare").chmod(0o755)
        units = self._files / "etc/systemd/system"
        units.mkdir(parents=True)
        for unit in ("libvirtd.service", "libvirtd.socket", "libvirt-guests.service"):
            (units / unit).symlink_to("/dev/null")

    def _init(self) -> int:
        """The container's first process, a child of nspawn's; 0 while there is none."""
        pid = self._process.pid
        assert self._process.poll() is None, self.console()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        inits = [child for child in children if procfs_name(child) == "systemd"]
        return int(inits[0]) if inits else 0

    def _has_booted(self) -> bool:
        """Whether systemd has nothing left to start; a service of the host's may have failed in there."""
        if not self._init():
            return False
        return self.run("systemctl", "is-system-running", check=False) in ("running", "degraded")

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in there; return what it prints."""
        done = subprocess.run(
            ["nsenter", f"--target={self._init()}", "--all", "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stdout + self.console()
        return done.stdout.strip()

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl, which must succeed; return what it prints."""
        return self.run("systemctl", "--no-pager", *arguments)

    def show(self, unit: str, key: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", f"--property={key}", "--value", unit)

    def wait_for(self, unit: str, key: str, value: str) -> None:
        """Return when a unit has that property."""
        wait_until(lambda: self.show(unit, key) == value, f"{unit}: {key}={value}", WAIT_SECONDS)

    def journal(self, *units: str) -> str:
        """Return what units have logged."""
        return self.run("journalctl", "--no-pager", *(f"--unit={unit}" for unit in units))

    def ask_broker(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask the broker by its control socket."""
        line = json.dumps({"command": command, **arguments})
        program = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(60); "
            "s.connect('/run/memshare/control.sock'); s.sendall(sys.argv[1].encode() + b'\\n'); "
            "print(s.makefile().readline())"
        )
        answer: dict[str, Any] = json.loads(self.run("python3", "-c", program, line))
        return answer

    def console(self) -> str:
        """All that systemd said on its console."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def __enter__(self) -> Self:
        try:
            wait_until(self._has_booted, "systemd has booted", BOOT_SECONDS)
        except BaseException:
            self._end()
            raise
        return self

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()  # nspawn, which has systemd power off
        self._process.wait(BOOT_SECONDS)
        self._log.close()
        shutil.rmtree(self._directory)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._end()
