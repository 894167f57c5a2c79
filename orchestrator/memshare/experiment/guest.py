# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of an experiment: its QEMU, its monitor, and what its agent can be asked to do.

What a guest does is done by programs of its image, see guests/README.md.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from memshare.bench.machine import Boot, Machine, command_line, make_overlay, spawn
from memshare.clients.monitor import Monitor
from memshare.clients.qmp import open_monitor
from memshare.errors import MemshareError
from memshare.experiment import agent
from memshare.experiment.agent import Agent, AgentError
from memshare.experiment.plan import Load

PROGRAMS = "/usr/lib/memshare"
AGENT_PORT = "org.qemu.guest_agent.0"
TOUCH_SECONDS = 600.0
NOTICE_SECONDS = 5.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest's load says of the time since it was last asked; see record.GuestReading."""

    load: str
    load_died: bool = False  # an image of earlier does not tell
    interval_seconds: float
    operations: int
    latency_us: dict[str, int]
    longest_stall_us: int | None
    integrity: str


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the guest's RAM was written since it booted."""

    touched_bytes: int
    ram_bytes: int


class Guest(Machine):
    """Made by `start`, stopped before its first instruction; `begin` lets it go."""

    def __init__(
        self, name: str, folder: Path, process: asyncio.subprocess.Process, ram_bytes: int
    ) -> None:
        """Wrap a started QEMU."""
        super().__init__(name, folder, process)
        self.ram_bytes = ram_bytes
        self.is_up = False
        self.is_counted = False
        self.is_verifying = False
        self._opened = AsyncExitStack()
        self._monitor_open: Monitor | None = None
        self._agent: Agent | None = None

    @property
    def is_running(self) -> bool:
        """Whether its QEMU is there."""
        return self._process.returncode is None

    async def has_ended(self) -> bool:
        """Whether its QEMU has ended; waits a little, for its sockets tell it earlier than the kernel does."""
        try:
            async with asyncio.timeout(NOTICE_SECONDS):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    @property
    def own_socket(self) -> Path:
        """The monitor that nobody but the experiment uses."""
        return self._folder / "own" / f"{self.name}.qmp"

    @property
    def control(self) -> Monitor:
        """Its monitor, open as long as the guest is."""
        assert self._monitor_open is not None
        return self._monitor_open

    @property
    def agent(self) -> Agent:
        """Its agent."""
        assert self._agent is not None
        return self._agent

    async def open(self) -> None:
        """Open its monitor."""
        async with asyncio.timeout(self.answer_seconds):
            while not self.own_socket.exists():
                if not self.is_running:
                    raise MemshareError(f"guest {self.name} ended: {self.last_words()}")
                await asyncio.sleep(0.02)
        self._monitor_open = await self._opened.enter_async_context(
            open_monitor(self.own_socket, self.answer_seconds)
        )

    async def begin(self) -> None:
        """Let it run."""
        await self.control.execute("cont")

    async def boot(self, seconds: float) -> None:
        """Wait until all that it starts at boot has started."""
        await self.watch(seconds, asyncio.ensure_future(self._come_up(seconds)))
        self.is_up = True

    async def _come_up(self, seconds: float) -> None:
        self._agent = await agent.connect(self._folder / f"{self.name}.agent", f"guest {self.name}")
        await self._agent.ready()
        # Also a system with a unit that failed is one that is up: the exit code tells them apart, and does not matter.
        done = await self._agent.run(
            "/usr/bin/systemctl", "is-system-running", "--wait", seconds=seconds
        )
        if (state := done.output.strip()) not in ("running", "degraded"):
            raise AgentError(f"guest {self.name}: its system is {state or done.errors.strip()}")

    async def load(self, load: Load) -> None:
        """Do this from now on, and what was done before no more."""
        await self.agent.output_of(f"{PROGRAMS}/load", str(load))

    async def keep_integrity(self, length_bytes: int) -> None:
        """Fill so much of files in RAM, and verify them from now on."""
        await self.agent.output_of(f"{PROGRAMS}/integrity", "start", str(length_bytes))
        self.is_verifying = True

    async def report(self) -> Report:
        """Ask what happened since the last time."""
        text = await self.agent.output_of(f"{PROGRAMS}/report")
        try:
            return msgspec.json.decode(text, type=Report)
        except msgspec.DecodeError as error:
            raise AgentError(f"guest {self.name}: report: {error}") from error

    async def touch(self, fraction: float) -> float:
        """Write random bytes to that part of its RAM and free it; the part that was written since the boot."""
        text = await self.agent.output_of(f"{PROGRAMS}/touch", str(fraction), seconds=TOUCH_SECONDS)
        try:
            touched = msgspec.json.decode(text, type=Touched)
        except msgspec.DecodeError as error:
            raise AgentError(f"guest {self.name}: touch: {error}") from error
        return touched.touched_bytes / touched.ram_bytes

    async def end(self) -> None:
        """Stop QEMU for good."""
        if self._agent is not None:
            self._agent.close()
        await self._opened.aclose()
        await super().end()


async def start(
    folder: Path,
    name: str,
    ram_bytes: int,
    boot: Boot,
    *,
    accel: str,
    mem_merge: bool,
    arguments: Sequence[str],
    enter: Callable[[], None],
) -> Guest:
    """Start a guest on a disk of its own above boot.disk, stopped; enter is called in its process first."""
    overlay = await asyncio.to_thread(make_overlay, boot.disk, folder / f"{name}.qcow2")
    process = await spawn(
        folder / f"{name}.err",
        *command_line(
            folder,
            name,
            ram_bytes,
            boot._replace(disk=overlay),
            machine=f"pc,mem-merge={'on' if mem_merge else 'off'}",
            accel=accel,
        ),
        *("-S", "-qmp", f"unix:{folder}/own/{name}.qmp,server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={folder}/{name}.agent,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
        *arguments,
        enter=enter,
    )
    guest = Guest(name, folder, process, ram_bytes)
    try:
        await guest.open()
    except BaseException:
        await guest.end()
        raise
    return guest
