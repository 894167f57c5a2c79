# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd of a test's own, as root, that runs stock QEMU as libvirt's usual unprivileged user.

libvirtd has most of its paths built in. It gets directories of its own by a mount namespace: what is below
`directory` lies over /run, /etc/libvirt and /var/*/libvirt for this libvirtd and its guests. There is no
system bus in there, so that it asks no systemd for cgroups and makes them itself, below /machine of cgroup v2.
/dev is without kvm: QEMU finds none where guests are of type `qemu`, and libvirt would look for it anew at
each start.
"""

import contextlib
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lib.broker import wait_until
from tests.lib.vm import QEMU, plugin_path

USER = "libvirt-qemu"

# $1: a directory with an empty one, `dev`, in it. The old mounts go, or libvirt would take them for its own.
CGROUPS_AND_DEVICES = """
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs -o mode=755 none "$1/dev"
for node in null zero full random urandom tty userfaultfd; do cp -a "/dev/$node" "$1/dev/"; done
mkdir "$1/dev/pts" "$1/dev/shm"
umount -lR /dev || :
mount --move "$1/dev" /dev
mount -t devpts -o newinstance,ptmxmode=666 none /dev/pts
ln -s pts/ptmx /dev/ptmx
"""

# $1: the directory.
NAMESPACE = f"""
set -eu
for place in run etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt; do
    mount --bind "$1/$place" "/$place"
done
{CGROUPS_AND_DEVICES}
exec libvirtd -f "$1/libvirtd.conf" -p "$1/libvirtd.pid"
"""

DAEMON_CONFIG = """
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""

# No virtlogd. security_driver: no AppArmor profiles; users stay apart all the same.
QEMU_CONFIG = """
stdio_handler = "file"
security_driver = "none"
seccomp_sandbox = 1
"""

DOMAIN = f"""
<domain type='qemu'>
  <name>{{name}}</name>
  {{metadata}}
  <memory unit='MiB'>48</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/{QEMU}</emulator>
    {{disk}}
    <memballoon model='none'/>
  </devices>
</domain>
"""


def domain_xml(name: str, metadata: str = "", disk: str = "") -> str:
    """Return a guest; one without a disk runs its firmware and finds nothing to boot."""
    return DOMAIN.format(name=name, metadata=metadata, disk=disk)


def user_group() -> int:
    """Return the group that libvirt's QEMUs run as."""
    return pwd.getpwnam(USER).pw_gid


class Libvirtd:
    """Running from `with` on. Guests that are left are destroyed at the end."""

    def __init__(self) -> None:
        # Other users must be able to pass, so not below pytest's directory.
        self.directory = Path(tempfile.mkdtemp(prefix="memshare-libvirt-"))
        self.directory.chmod(0o755)
        for place in ("run", "etc", "var/lib", "var/log", "var/cache"):
            (self.directory / place / "libvirt").mkdir(parents=True)
        self.hooks = self.directory / "etc/libvirt/hooks"
        for folder in (self.hooks, self.directory / "dev"):
            folder.mkdir()
        (self.directory / "libvirtd.conf").write_text(DAEMON_CONFIG)
        (self.directory / "etc/libvirt/qemu.conf").write_text(QEMU_CONFIG)
        # The tree of the sources may be root's alone.
        self.plugin = Path(shutil.copy(plugin_path(), self.directory))
        self.plugin.chmod(0o755)
        self._socket = self.directory / "run/libvirt/libvirt-sock"
        self._log = (self.directory / "libvirtd.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where to connect to."""
        return f"qemu+unix:///system?socket={self._socket}"

    @property
    def run(self) -> Path:
        """Where it keeps the process ids of its guests."""
        return self.directory / "run/libvirt/qemu"

    def pid_of(self, name: str) -> int:
        """Return the QEMU of a guest that runs."""
        return int((self.run / f"{name}.pid").read_text())

    def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-c", NAMESPACE, "sh", str(self.directory)),
            ],
            stdout=self._log,
            stderr=self._log,
        )
        wait_until(self._listens, "libvirtd listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "libvirtd.log").read_text()
        return self._socket.exists()

    def stop(self) -> None:
        """End it; its guests go on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self._socket.unlink(missing_ok=True)

    def virsh(self, *arguments: str, stdin: str | None = None) -> str:
        """Run virsh, which must succeed; return what it prints."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"virsh {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def define(self, xml: str) -> None:
        """Define a guest."""
        self.virsh("define", "/dev/stdin", stdin=xml)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for name in self.virsh("list", "--name").split():
            self.virsh("destroy", name)
        self.stop()
        self._log.close()
        remove_cgroup(self.directory)
        shutil.rmtree(self.directory)


def remove_cgroup(directory: Path) -> None:
    """Remove what libvirtd leaves behind, unless somebody else has guests in it."""
    mount = directory / "cgroup"
    mount.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", mount], check=True)
    with contextlib.suppress(OSError):
        (mount / "machine").rmdir()
    subprocess.run(["umount", mount], check=True)
