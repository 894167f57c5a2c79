# SPDX-License-Identifier: GPL-2.0-or-later
"""A broker and a few Debian guests under stock QEMU, for experiments. Runs as root.

The guests run as an unprivileged user, from copies in a folder of their own that this user may
enter. Everything ends with the `async with` block, however it is left; should this process be killed
outright, the kernel ends its children.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from memshare.clients import broker as broker_client
from memshare.clients.monitor import Monitor
from memshare.clients.qmp import open_monitor
from memshare.errors import HostError, MemshareError, UnreachableError

GUEST_UID = 64055  # Debian's number for libvirt-qemu; it needs no entry in /etc/passwd
GROUP = "demo"
START_SECONDS = 30.0
END_SECONDS = 10.0
#: The QEMU of every guest, here and in the tests.
QEMU = os.environ.get("MEMSHARE_QEMU", "qemu-system-x86_64")


class Guest:
    """A running guest, its monitor and the agent on its second serial port."""

    #: How long the monitor may take to answer.
    answer_seconds = START_SECONDS

    def __init__(self, name: str, folder: Path, process: asyncio.subprocess.Process) -> None:
        """Wrap a started QEMU."""
        self.name = name
        self.pid = process.pid
        self._folder = folder
        self._process = process
        self._agent: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._monitor = asyncio.Lock()

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

    async def watch(self, seconds: float, awaitable: "asyncio.Future[str]") -> str:
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

    async def boot(self, seconds: float) -> None:
        """Wait until the agent is there."""
        await self.watch(seconds, asyncio.ensure_future(self._first_reply()))

    async def _first_reply(self) -> str:
        await self.connect()
        return await self._reply()

    async def connect(self) -> None:
        """Connect to the agent, or to where it will be after an incoming migration."""
        path = self._folder / f"{self.name}.agent"
        while True:
            try:
                self._agent = await asyncio.open_unix_connection(str(path))
                return
            except OSError:
                await asyncio.sleep(0.05)

    async def hear(self) -> bytes:
        """Return the agent's next line; not the whole of it, or nothing, when QEMU ended before."""
        assert self._agent is not None
        return await self._agent[0].readline()

    async def _reply(self) -> str:
        line = (await self.hear()).decode(errors="replace").strip()
        if not line:
            raise MemshareError(f"guest {self.name}: its agent went away: {self.last_words()}")
        return line

    async def ask(self, request: str, seconds: float) -> str:
        """Send a request to the agent; return what follows `ok`. Raises on `bad`."""
        assert self._agent is not None
        self._agent[1].write(request.encode() + b"\n")
        answer = await self.watch(seconds, asyncio.ensure_future(self._reply()))
        verdict, _, rest = answer.partition(" ")
        if verdict != "ok":
            raise AgentError(f"guest {self.name}: {request}: {rest or answer}")
        return rest

    @asynccontextmanager
    async def monitor(self) -> AsyncIterator[Monitor]:
        """Open the monitor, one user after the other; waits for a QEMU that has just started."""
        async with self._monitor, self._open_monitor() as monitor:
            yield monitor

    @asynccontextmanager
    async def _open_monitor(self) -> AsyncIterator[Monitor]:
        async with asyncio.timeout(self.answer_seconds):
            while not self.qmp_socket.exists():
                if self._process.returncode is not None:
                    raise MemshareError(f"guest {self.name} ended: {self.last_words()}")
                await asyncio.sleep(0.05)
        async with open_monitor(self.qmp_socket, self.answer_seconds) as monitor:
            yield monitor

    async def kill(self) -> None:
        """Let QEMU die without a word to anybody."""
        self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        """Stop QEMU for good."""
        if self._agent is not None:
            self._agent[1].close()
        await end_process(self._process)


class AgentError(MemshareError):
    """A guest's agent said `bad`: it could not do what was asked, or found other bytes than it wrote."""


class Fleet:
    """Starts the broker and guests in one folder. Made by `open_fleet`."""

    def __init__(self, folder: Path, build: Path, image: Path, stack: AsyncExitStack) -> None:
        """Remember where things are."""
        self.folder = folder
        self.broker_pid = 0
        self._broker: asyncio.subprocess.Process | None = None
        self.guests: list[Guest] = []
        self._build = build
        self._image = image
        self._stack = stack

    @property
    def group_socket(self) -> Path:
        """Where guests find the broker."""
        return self.folder / "broker" / f"{GROUP}.sock"

    @property
    def control_socket(self) -> Path:
        """Where the broker takes commands."""
        return self.folder / "broker" / "control.sock"

    async def start_broker(self) -> None:
        """Start memshared, also after one that has died, and wait until it answers."""
        runtime = self.folder / "broker"
        runtime.mkdir(mode=0o755, exist_ok=True)
        log = self.folder / "broker.log"
        process = await self._spawn(
            log,
            "setpriv",
            "--pdeathsig=TERM",
            str(self._build / "qemu-plugin" / "broker" / "memshared"),
            f"--runtime-dir={runtime}",
            f"--group={GROUP}",
            "--allow-by-mode",
            "--socket-mode=0666",
        )
        self._stack.push_async_callback(end_process, process)
        self._broker = process
        self.broker_pid = process.pid
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                await broker_client.ask(self.control_socket, "status")
                return
            except UnreachableError:
                late = asyncio.get_running_loop().time() > deadline
                if late or process.returncode is not None:
                    words = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise MemshareError(
                        f"the broker did not start: {words[0] if words else 'it said nothing'}"
                    ) from None
                await asyncio.sleep(0.05)

    async def kill_broker(self) -> None:
        """Let the broker die without a word to anybody."""
        assert self._broker is not None
        self._broker.kill()
        await self._broker.wait()

    async def start_guest(
        self,
        name: str,
        ram_bytes: int,
        plugin_options: str,
        *,
        arguments: Sequence[str] = (),
        kernel_options: str = "",
        disk: Path | None = None,
    ) -> Guest:
        """Start one guest, with more arguments for QEMU and its kernel.

        On a disk of its own, or on that of a guest that will migrate here.
        """
        overlay = disk or self._make_disk(name)
        plugin = self.folder / "libmemshare-qemu.so"
        process = await self._spawn(
            self.folder / f"{name}.err",
            "setpriv", f"--reuid={GUEST_UID}", f"--regid={GUEST_UID}", "--clear-groups",
            "--pdeathsig=KILL", "--no-new-privs",
            QEMU, "-name", name, "-machine", "pc", "-accel", "tcg,tb-size=64", "-cpu", "qemu64",
            "-smp", "1", "-m", f"{ram_bytes >> 10}K", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd"),
            "-append", f"console=ttyS0 root=/dev/vda rw panic=-1 quiet {kernel_options}",
            "-chardev", f"file,id=console,path={self.folder}/{name}.log", "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,path={self.folder}/{name}.agent,server=on,wait=off",
            "-serial", "chardev:agent",
            "-qmp", f"unix:{self.folder}/qmp/{name}.qmp,server=on,wait=off",
            "-drive", f"file={overlay},if=virtio,cache=writeback",
            "-plugin", f"{plugin},socket={self.group_socket},group={GROUP},{plugin_options}",
            *arguments,
        )  # fmt: skip
        guest = Guest(name, self.folder, process)
        self._stack.push_async_callback(guest.end)
        self.guests.append(guest)
        return guest

    def _make_disk(self, name: str) -> Path:
        overlay = self.folder / f"{name}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
            "-b", str(self.folder / "base.qcow2"), str(overlay))  # fmt: skip
        os.chown(overlay, GUEST_UID, GUEST_UID)
        return overlay

    async def _spawn(self, log: Path, *command: str) -> asyncio.subprocess.Process:
        with log.open("wb") as output:
            try:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is ours to handle, not theirs
                )
            except OSError as error:
                raise HostError(f"{command[0]}: {(error.strerror or '').lower()}") from error

    def copy_files(self) -> None:
        """Put what the guests read where their user can reach it."""
        self.folder.chmod(0o755)  # the broker, without capabilities, must reach its sockets
        (self.folder / "qmp").mkdir()
        for path in (self.folder, self.folder / "qmp"):
            os.chown(path, GUEST_UID, GUEST_UID)
        sources = [self._image / name for name in ("vmlinuz", "initrd", "base.qcow2")]
        sources.append(self._build / "qemu-plugin" / "plugin" / "libmemshare-qemu.so")
        for source in sources:
            if not source.exists():
                raise MemshareError(f"{source}: not there", "run ./dev build")
            shutil.copyfile(source, self.folder / source.name)


@asynccontextmanager
async def open_fleet(build: Path, image: Path) -> AsyncIterator[Fleet]:
    """Make a fleet without processes; on leaving, end all of its processes and remove its files."""
    folder = Path(tempfile.mkdtemp(prefix="memshare-", dir="/var/tmp"))
    try:
        async with AsyncExitStack() as stack:
            fleet = Fleet(folder, build, image, stack)
            fleet.copy_files()
            yield fleet
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def build_image(recipe: Sequence[str]) -> Path:
    """Run a guest's recipe, its progress shown, and return the folder that it names."""
    done = subprocess.run(recipe, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MemshareError(f"{recipe[0]} failed with {signal_or_code(done.returncode)}")
    return Path(done.stdout.strip().splitlines()[-1])


def signal_or_code(code: int) -> str:
    """Name how a process ended."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
