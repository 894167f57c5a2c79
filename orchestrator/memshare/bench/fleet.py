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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from memshare.bench.machine import (
    GUEST_UID,
    START_SECONDS,
    Boot,
    Machine,
    command_line,
    end_process,
    make_overlay,
    spawn,
)
from memshare.clients import broker as broker_client
from memshare.errors import MemshareError, UnreachableError
from memshare.model import PageStats

GROUP = "demo"
RAM_BYTES = 256 << 20  # of a guest, unless told otherwise
SCAN_RATE_PAGES = (
    100_000  # per second and guest: the whole of it in under a second, if CPU is there
)
BOOT_SECONDS = 240.0
ANSWER_SECONDS = 120.0


class Guest(Machine):
    """A running guest and the agent on its second serial port."""

    def __init__(self, name: str, folder: Path, process: asyncio.subprocess.Process) -> None:
        """Wrap a started QEMU."""
        super().__init__(name, folder, process)
        self._agent: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

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

    async def end(self) -> None:
        """Stop QEMU for good."""
        if self._agent is not None:
            self._agent[1].close()
        await super().end()


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
        process = await start_broker(self.folder, self._build, GROUP)
        self._stack.push_async_callback(end_process, process)
        self._broker = process
        self.broker_pid = process.pid

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
        overlay = disk or make_overlay(self.folder / "base.qcow2", self.folder / f"{name}.qcow2")
        plugin = self.folder / "libmemshare-qemu.so"
        boot = Boot(self.folder / "vmlinuz", self.folder / "initrd", overlay, kernel_options)
        process = await spawn(
            self.folder / f"{name}.err",
            *command_line(self.folder, name, ram_bytes, boot),
            *("-chardev", f"socket,id=agent,path={self.folder}/{name}.agent,server=on,wait=off"),
            *("-serial", "chardev:agent"),
            *("-plugin", f"{plugin},socket={self.group_socket},group={GROUP},{plugin_options}"),
            *arguments,
        )
        guest = Guest(name, self.folder, process)
        self._stack.push_async_callback(guest.end)
        self.guests.append(guest)
        return guest

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


async def start_broker(
    folder: Path, build: Path, group: str, enter: Callable[[], None] | None = None
) -> asyncio.subprocess.Process:
    """Start memshared with its sockets in folder/broker, and wait until it answers.

    enter is called in the new process, before the program.
    """
    runtime = folder / "broker"
    runtime.mkdir(mode=0o755, exist_ok=True)
    log = folder / "broker.log"
    process = await spawn(
        log,
        *("setpriv", "--pdeathsig=TERM", str(build / "qemu-plugin" / "broker" / "memshared")),
        *(f"--runtime-dir={runtime}", f"--group={group}", "--allow-by-mode", "--socket-mode=0666"),
        enter=enter,
    )
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while True:
        try:
            await broker_client.ask(runtime / "control.sock", "status")
            return process
        except UnreachableError:
            late = asyncio.get_running_loop().time() > deadline
            if late or process.returncode is not None:
                await end_process(process)
                words = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise MemshareError(
                    f"the broker did not start: {words[0] if words else 'it said nothing'}"
                ) from None
            await asyncio.sleep(0.05)


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


def build_image(recipe: Sequence[str]) -> Path:
    """Run a guest's recipe, its progress shown, and return the folder that it names."""
    done = subprocess.run(recipe, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise MemshareError(f"{recipe[0]} failed with {signal_or_code(done.returncode)}")
    return Path(done.stdout.strip().splitlines()[-1])


def signal_or_code(code: int) -> str:
    """Name how a process ended."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


async def read_stats(guests: Sequence[Guest]) -> list[PageStats]:
    """Ask all engines at once."""

    async def one(guest: Guest) -> PageStats:
        async with guest.monitor() as monitor:
            return await monitor.stats()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(guest)) for guest in guests]
    return [task.result() for task in tasks]


async def tell(
    guests: Sequence[Guest], command: str | None = None, **properties: str | int
) -> None:
    """Set properties of all engines, or give all monitors a command such as `stop`."""
    for guest in guests:
        async with guest.monitor() as monitor:
            for name, value in properties.items():
                await monitor.set(name.replace("_", "-"), value)
            if command is not None:
                await monitor.execute(command)


async def ask_all(guests: Sequence[Guest], request: str) -> list[str]:
    """Have all guests do something at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(guest.ask(request, ANSWER_SECONDS)) for guest in guests]
    return [task.result() for task in tasks]


async def verify(guests: Sequence[Guest], expected: Sequence[str]) -> list[str]:
    """All guests read their files; return what is not as noted outside of them."""

    async def one(guest: Guest, wanted: str) -> list[str]:
        try:
            found = await guest.ask("verify", ANSWER_SECONDS)
        except AgentError as error:
            return [str(error)]
        return [] if found == wanted else [f"guest {guest.name}: sums differ from those noted"]

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(guest, wanted))
            for guest, wanted in zip(guests, expected, strict=True)
        ]
    return [problem for task in tasks for problem in task.result()]


async def at_rest(guests: Sequence[Guest]) -> None:
    """Wait until all engines are paused and their figures stand still."""
    last = None
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            now = await read_stats(guests)
            figures = [(s.shared_pages, s.zero_pages, s.saved_content_bytes) for s in now]
            if figures == last and all(stats.state == "paused" for stats in now):
                return
            last = figures
            await asyncio.sleep(0.2)
