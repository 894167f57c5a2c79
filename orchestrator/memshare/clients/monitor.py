# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's monitor, whoever holds it: the plugin's QOM object behind QMP commands.

`qmp.py` talks to a socket, `libvirt.py` through libvirt; both only have to bring a command to QEMU.
"""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import msgspec

from memshare.errors import MemshareError, UnreachableError
from memshare.model import WITHOUT_PLUGIN, Domain, PageStats

OBJECT = "/objects/memshare0"
#: QEMU's class of errors for what is not in its tree of objects.
NO_SUCH_OBJECT = "DeviceNotFound"
TIMEOUT_SECONDS = 5.0

T = TypeVar("T")


class NoSuchObjectError(MemshareError):
    """QEMU has no object of that path."""


class NotSharingError(MemshareError):
    """The guest runs without the plugin."""


#: Each figure of `stats` is of 64 bits. Whoever tells more is no engine, and would not fit what is reckoned with.
FIGURE_MAX = (1 << 64) - 1
#: Nor has a histogram by powers of two more buckets than bits.
BUCKETS_MAX = 64


class _Name(msgspec.Struct):
    """The answer to query-name."""

    name: str | None = None


class _Uuid(msgspec.Struct, rename="upper"):
    """The answer to query-uuid."""

    uuid: str


class Monitor(ABC):
    """An open monitor."""

    def __init__(self, where: str) -> None:
        """Remember how messages name this guest."""
        self.where = where

    @abstractmethod
    async def execute(self, command: str, **arguments: object) -> Any:
        """Run one command and return its result.

        Raises UnreachableError when no answer comes in time, MemshareError with QEMU's own words:
        NoSuchObjectError when they are about an object that is not there.
        """

    async def name(self) -> str:
        """The guest's name, as given to QEMU; empty when it has none."""
        answer = await self.execute("query-name")
        return self._understood("query-name", answer, _Name).name or ""

    async def uuid(self) -> str:
        """The guest's UUID, as given to QEMU; empty when it has none."""
        text = self._understood("query-uuid", await self.execute("query-uuid"), _Uuid).uuid
        return text if text.strip("0-") else ""

    async def stats(self) -> PageStats:
        """Return the plugin's figures; raises NotSharingError for a guest without it."""
        try:
            answer = await self.execute("qom-get", path=OBJECT, property="stats")
        except NoSuchObjectError as error:
            raise NotSharingError(f"{self.where}: {WITHOUT_PLUGIN}") from error
        stats = self._understood("stats", answer, PageStats)
        for name, value in msgspec.structs.asdict(stats).items():
            figures = value if isinstance(value, list) else [value]
            if len(figures) > BUCKETS_MAX:
                raise MemshareError(f"{self.where}: stats: {name} has {len(figures)} buckets")
            if any(isinstance(one, int) and not 0 <= one <= FIGURE_MAX for one in figures):
                raise MemshareError(f"{self.where}: stats: {name} is not a number of 64 bits")
        return stats

    def _understood(self, what: str, answer: object, kind: type[T]) -> T:
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise MemshareError(f"{self.where}: {what}: {error}") from error

    async def set(self, name: str, value: str | int) -> None:
        """Set `mode`, `scan-rate` or `cpu-limit`."""
        await self.execute("qom-set", path=OBJECT, property=name, value=value)

    async def balloon_bytes(self) -> int | None:
        """Return the RAM that the guest's balloon leaves it, None for one without a balloon, or that talks nonsense."""
        try:
            actual = (await self.execute("query-balloon"))["actual"]
        except UnreachableError:
            raise
        except (MemshareError, KeyError, TypeError):
            return None
        return actual if isinstance(actual, int) and 0 <= actual <= FIGURE_MAX else None

    async def set_balloon(self, target_bytes: int) -> None:
        """Ask the guest's balloon to leave it so much RAM; it takes its time, and may not get there."""
        await self.execute("balloon", value=target_bytes)


async def look(monitor: Monitor, guest: Domain) -> Domain:
    """Return the guest with its figures, or with the reason why there are none. Raises nothing."""
    try:
        return msgspec.structs.replace(guest, stats=await monitor.stats())
    except NotSharingError:
        return msgspec.structs.replace(guest, problem=guest.problem or WITHOUT_PLUGIN)
    except MemshareError as error:
        answered = not isinstance(error, UnreachableError)
        return msgspec.structs.replace(guest, problem=str(error), answered=answered)
