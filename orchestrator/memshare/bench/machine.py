# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's stock QEMU, as experiments run it: its command line, its life, its monitor.

It runs as an unprivileged user, in a session of its own. Should this process be killed outright, the kernel ends it.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from memshare.clients.monitor import Monitor
from memshare.clients.qmp import open_monitor, server_of
from memshare.errors import HostError, MemshareError

GUEST_UID = 64055  # Debian's number for libvirt-qemu; it needs no entry in /etc/passwd
START_SECONDS = 30.0
END_SECONDS = 10.0
#: The QEMU of every guest, here and in the tests.
QEMU = os.environ.get("MEMSHARE_QEMU", "qemu-system-x86_64")

T = TypeVar("T")


#: Of each Linux guest. The kernel tries for a few ticks whether its timer works, and panics where a busy host gave it no
#: time for that: one guest in 35 did, among 14 busy loops on two cores.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 no_timer_check"


class Boot(NamedTuple):
    """What a guest starts from: a kernel, or else its disk.

    arguments are more of QEMU's that it needs; tcg_cpu is its processor where there is no KVM.
    """

    kernel: Path | None
    initrd: Path | None
    disk: Path
    kernel_options: str = ""
    arguments: tuple[str, ...] = ()
    tcg_cpu: str = "qemu64"


def command_line(
    folder: Path,
    name: str,
    ram_bytes: int,
    boot: Boot,
    *,
    machine: str = "pc",
    accel: str = "tcg",
) -> list[str]:
    """Return the command line that all guests have in common; files and monitor are in folder. Pure."""
    # QEMU's buffer for translated code would by default outgrow such a guest.
    is_tcg = accel == "tcg"
    kernel = [
        "-kernel", str(boot.kernel), "-initrd", str(boot.initrd),
        "-append", f"{KERNEL_OPTIONS} root=/dev/vda rw {boot.kernel_options}",
    ] if boot.kernel else []  # fmt: skip
    return [
        "setpriv", f"--reuid={GUEST_UID}", f"--regid={GUEST_UID}", "--clear-groups",
        "--pdeathsig=KILL", "--no-new-privs",
        QEMU, "-name", name, "-machine", machine, "-accel", "tcg,tb-size=64" if is_tcg else accel,
        "-cpu", boot.tcg_cpu if is_tcg else "host",
        "-smp", "1", "-m", f"{ram_bytes >> 10}K", "-nodefaults", "-display", "none", "-no-reboot",
        *kernel, *boot.arguments,
        "-chardev", f"file,id=console,path={folder}/{name}.log", "-serial", "chardev:console",
        "-qmp", f"unix:{folder}/qmp/{name}.qmp,server=on,wait=off",
        "-drive", f"file={boot.disk},if=virtio,cache=writeback",
    ]  # fmt: skip


class Machine:
    """A running guest and its monitor."""

    #: How long the monitor may take to answer.
    answer_seconds = START_SECONDS

    def __init__(self, name: str, folder: Path, process: asyncio.subprocess.Process) -> None:
        """Wrap a started QEMU."""
        self.name = name
        self.pid = process.pid
        self._folder = folder
        self._process = process
        self._monitor = asyncio.Lock()
        self._has_listened = False

    @property
    def qmp_socket(self) -> Path:
        """The monitor's socket."""
        return self._folder / "qmp" / f"{self.name}.qmp"

    def last_words(self) -> str:
        """What QEMU said last, else the guest's console."""
        for suffix in ("err", "log"):
            path = self._folder / f"{self.name}.{suffix}"
            lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
            if lines:
                return lines[-1]
        return "it said nothing"

    async def watch(self, seconds: float, awaitable: "asyncio.Future[T]") -> T:
        """Wait for something of the guest's, but no longer than it lives."""
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait(
                (ended, awaitable), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if awaitable.done():
                return awaitable.result()
            if ended.done():
                raise MemshareError(f"guest {self.name} ended: {self.last_words()}")
            raise MemshareError(
                f"guest {self.name} did not answer in {seconds:.0f} s: {self.last_words()}"
            )
        finally:
            for future in (ended, awaitable):
                future.cancel()

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator[Monitor]:
        """Open the monitor, one user after the other; waits for a QEMU that has just started."""
        async with self._monitor, self._open_monitor() as monitor:
            yield monitor

    @asynccontextmanager
    async def _open_monitor(self) -> AsyncIterator[Monitor]:
        async with asyncio.timeout(self.answer_seconds):
            # Its file comes before it listens: a QEMU that loses the processor in between refuses.
            while not self._has_listened and server_of(self.qmp_socket) is None:
                if self._process.returncode is not None:
                    raise MemshareError(f"guest {self.name} ended: {self.last_words()}")
                await asyncio.sleep(0.05)
        self._has_listened = True
        async with open_monitor(self.qmp_socket, self.answer_seconds) as monitor:
            yield monitor

    async def kill(self) -> None:
        """Let QEMU die without a word to anybody."""
        self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        """Stop QEMU for good."""
        await end_process(self._process)


def make_overlay(base: Path, overlay: Path) -> Path:
    """Make a guest's own disk on top of one that stays as it is."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay))
    os.chown(overlay, GUEST_UID, GUEST_UID)
    return overlay


async def spawn(
    log: Path, *command: str, enter: Callable[[], None] | None = None
) -> asyncio.subprocess.Process:
    """Start a program that writes to log; enter is called in the new process, before it."""
    with log.open("wb") as output:
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is ours to handle, not theirs
                preexec_fn=enter,
            )
        except OSError as error:
            raise HostError(f"{command[0]}: {(error.strerror or '').lower()}") from error


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end, then end it."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def run(*command: str) -> str:
    """Run a command to its end and return what it printed; raises with its last line of complaint."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise MemshareError(f"{command[0]}: {words[0]}")
    return done.stdout
