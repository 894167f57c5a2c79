# SPDX-License-Identifier: GPL-2.0-or-later
"""What all engines of a run have in common, and the one that shares nothing.

`async with engine` makes what it needs and takes it away afterwards, on every way out; the guests live inside. `start`
lets it begin, for guests that are there and for those that come.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from memshare.bench.cgroup import MemoryCgroup
from memshare.clients import ksm
from memshare.errors import HostError
from memshare.experiment.guest import Guest
from memshare.experiment.plan import EngineKind, Plan


class Lab(NamedTuple):
    """Where a run happens. guests are those that were started, in order; the list grows."""

    folder: Path
    build: Path
    plan: Plan
    cgroup: MemoryCgroup
    guests: list[Guest]

    @property
    def running(self) -> list[Guest]:
        """Those whose QEMU is there."""
        return [guest for guest in self.guests if guest.is_running]


class Figures(NamedTuple):
    """What an engine says of itself; see record.Sample. What it cannot say is None. overhead_bytes: of its tables."""

    scan_cpu_seconds: float = 0.0
    saved_zero_bytes: int | None = None
    saved_content_bytes: int | None = None
    scanned_pages: int | None = None
    breaks: int | None = None
    overhead_bytes: int | None = None


class Engine(ABC):
    """One way to share memory."""

    #: Whether QEMU marks its memory for KSM, which is also how an owner says that it may be shared at all.
    mem_merge = True

    def __init__(self, lab: Lab, kind: EngineKind) -> None:
        """Make nothing yet."""
        self.lab = lab
        self.kind = kind
        self._stack = AsyncExitStack()

    @classmethod
    @abstractmethod
    def check(cls, kind: EngineKind, build: Path) -> None:
        """Raise where this host or build lacks what it needs, whatever else goes on. Its turn may come much later."""

    def arguments(self, name: str) -> list[str]:
        """Return what QEMU is told more, for that guest."""
        return []

    @property
    def broker_pid(self) -> int | None:
        """Who holds the store, where there is one."""
        return None

    @abstractmethod
    async def open(self) -> None:
        """Make what it needs, on self._stack."""

    @abstractmethod
    async def start(self) -> None:
        """Share from now on."""

    @abstractmethod
    async def figures(self) -> Figures:
        """Read what it has done so far."""

    async def rounds(self) -> int | None:
        """How often all memory was visited; None where nothing is."""
        return None

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Have it change nothing meanwhile; guests are stopped."""
        yield

    async def __aenter__(self) -> Self:
        """Make what it needs."""
        self.check(self.kind, self.lab.build)
        try:
            await self.open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything away."""
        await self._stack.aclose()


def refuse_ksmd() -> None:
    """Raise where ksmd is at work, though it is not what is measured."""
    try:
        is_at_work = ksm.read_knobs().get("run") == ksm.RUN_MERGE
    except OSError:
        return  # a kernel without KSM
    if is_at_work:
        raise HostError(
            "the kernel's KSM is at work on this host, which would change the figures",
            f"echo 2 > {ksm.KSM / 'run'}",
        )


class Off(Engine):
    """Nothing is shared."""

    mem_merge = False

    @classmethod
    def check(cls, kind: EngineKind, build: Path) -> None:
        """Need nothing."""

    async def open(self) -> None:
        """See that nobody else shares."""
        refuse_ksmd()

    async def start(self) -> None:
        """Go on doing nothing."""

    async def figures(self) -> Figures:
        """Say that nothing was done."""
        return Figures()
