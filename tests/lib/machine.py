# SPDX-License-Identifier: GPL-2.0-or-later
"""A root shell on a machine of its own: this one, without what runs on it, and gone at the end with all that was done.

The host's files are there, in overlays: what is written to them is in memory and nobody else's. Processes, network
and /run are new; the first process is the shell, and all others end with it. Left of the host are the kernel and its
knobs; the one that may be changed in here, vm.max_map_count, is a file like others.
"""

import os
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lib import libvirtd

DEADLINE_SECONDS = 240.0

# $1: a directory that becomes a mount; $2: the tree of the sources.
BOOT = f"""
set -eu
mount -t tmpfs -o mode=755 none "$1"
for place in /etc /opt /usr /var "$2"; do
    mkdir -p "$1/upper$place" "$1/work$place"
    mount -t overlay none -o "lowerdir=$place,upperdir=$1/upper$place,workdir=$1/work$place" "$place"
done
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=755 none /etc/libvirt
mkdir "$1/dev" "$1/home"
cat /proc/sys/vm/max_map_count >"$1/max_map_count"
mount --bind "$1/max_map_count" /proc/sys/vm/max_map_count
{libvirtd.CGROUPS_AND_DEVICES}
python3 -c '
import fcntl, socket, struct
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
'
cd "$2"
export HOME="$1/home"
exec bash --norc --noprofile
"""

LIBVIRT = {
    "libvirtd.conf": 'auth_unix_rw = "none"\n',
    "qemu.conf": libvirtd.QEMU_CONFIG,
}


class MachineError(AssertionError):
    """The shell has ended, or does not come to an end."""


class Machine:
    """Running from `with` on, with a libvirtd. sources is the tree that the shell begins in."""

    def __init__(self, sources: Path, **environment: str) -> None:
        # Other users must be able to pass: libvirt's QEMUs, to their disks.
        self.directory = Path(tempfile.mkdtemp(prefix="memshare-machine-"))
        self.directory.chmod(0o755)
        (self.directory / "mount").mkdir()
        self._console = (self.directory / "console").open("w+b")
        self._codes, self._end = os.pipe()
        self._shell = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation=private", "--net", "--pid", "--fork"),
                *("--kill-child", "--mount-proc", "bash", "-c", BOOT, "bash"),
                *(self.directory / "mount", sources),
            ],
            stdin=subprocess.PIPE,
            stdout=self._console,
            stderr=self._console,
            env={**os.environ, **environment},
            pass_fds=[self._end],
        )
        os.close(self._end)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in the shell, as if typed; return exit code and all that it says."""
        step, said = self.directory / "step", self.directory / "said"
        step.write_text(command)
        assert self._shell.stdin is not None
        line = f"{{ . {step}; }} >{said} 2>&1 </dev/null {self._end}>&-; echo $? >&{self._end}\n"
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()
        ready, _, _ = select.select([self._codes], [], [], DEADLINE_SECONDS)
        code = os.read(self._codes, 16) if ready else b""
        output = said.read_text() if said.exists() else ""
        if not code:
            raise MachineError(f"{command}: {'ended' if ready else 'takes too long'}\n{output}")
        return int(code), output

    def do(self, command: str) -> str:
        """Run a command that must succeed; return what it says."""
        code, output = self.run(command)
        if code:
            raise MachineError(f"{command}: exit code {code}\n{output}{self._messages()}")
        return output

    def write(self, path: str, text: str) -> None:
        """Write a file of this machine."""
        (self.directory / "text").write_text(text)
        self.do(f"cp --no-preserve=all {self.directory / 'text'} {path}")

    def _messages(self) -> str:
        return os.pread(self._console.fileno(), 1 << 20, 0).decode(errors="replace")

    def __enter__(self) -> Self:
        try:
            for name, text in LIBVIRT.items():
                self.write(f"/etc/libvirt/{name}", text)
            self.do("libvirtd --daemon")
        except BaseException:
            self._shut_down()
            raise
        return self

    def _first_process(self) -> int:
        """The shell, by its number outside; 0 when it has ended."""
        pid = self._shell.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _shut_down(self) -> None:
        """Switch guests off, which removes their cgroups; end the shell, and with it all processes."""
        if shell := self._first_process():
            off = "for guest in $(virsh list --name); do virsh destroy $guest; done"
            enter = [
                "nsenter",
                f"--target={shell}",
                "--all",
                "--",
                "timeout",
                "60",
                "sh",
                "-c",
                off,
            ]
            subprocess.run(enter, stdout=self._console, stderr=self._console, check=False)
            os.kill(shell, signal.SIGKILL)
        self._shell.wait()
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        os.close(self._codes)
        self._console.close()
        libvirtd.remove_cgroup(self.directory)
        shutil.rmtree(self.directory)

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._shut_down()
