# SPDX-License-Identifier: GPL-2.0-or-later
"""A plan: which guests get which load, in which order, under which engines. Pure but for reading the file.

TOML with strict keys; an error names the file and the key. Sizes are bytes, or text such as "512M".
"""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec

from memshare.errors import UsageError

SUFFIXES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
Seconds = Annotated[float, msgspec.Meta(gt=0)]
#: What records have for a phase until the first one, and in a ladder.
BOOT, LADDER = "boot", "ladder"
#: Plans that come with memshare.
SHIPPED = Path(__file__).parent / "plans"


class EngineKind(StrEnum):
    """What shares memory, if anything does."""

    OFF = "off"
    KSM_DEFAULT = "ksm-default"  # the kernel's knobs as they come: 100 pages each 20 ms
    KSM_FULL = "ksm-full"  # pages_to_scan without bound, no sleep
    KSM_ADVISOR = "ksm-advisor"  # scan-time advisor with its defaults
    KSMTUNED = "ksmtuned"  # Debian's package with its defaults
    MEMSHARE_ZERO = "memshare-zero"  # zero pages only
    MEMSHARE = "memshare"

    @property
    def is_ksm(self) -> bool:
        """Whether ksmd does the work."""
        return self.value.startswith("ksm")

    @property
    def is_memshare(self) -> bool:
        """Whether the plugin does the work."""
        return self.value.startswith("memshare")


class Load(StrEnum):
    """What a guest does in a phase. The guest's part of each is in the images."""

    IDLE = "idle"
    CACHE = "cache"  # reads the files of its image, in an order of its own
    WEB = "web"  # a web server answers requests made in the guest
    DATABASE = "database"  # inserts, updates, selects
    COMPILE = "compile"  # many short processes, files made and removed
    ALLOCATE = "allocate"  # takes most of free memory, fills it with random bytes, frees it, again and again


class Section(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """A table of the file."""


class Guests(Section, frozen=True, kw_only=True):
    """The guests, all alike.

    image is a folder of guests/linux, or the path of an image that exists. stagger_seconds lie between two starts; with
    at_once, no more than so many boot at a time. kernel_options are added to the guest's kernel command line.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=64)]
    image: str = "minimal"
    ram: str = "512M"
    accel: str = "tcg"
    stagger_seconds: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    at_once: Annotated[int, msgspec.Meta(ge=1)] = 2
    kernel_options: str = ""
    integrity_bytes: str = "32M"  # of files in RAM, verified all the time

    @property
    def ram_bytes(self) -> int:
        """RAM of each."""
        return parse_size(self.ram)


class Phase(Section, frozen=True, kw_only=True):
    """A time in which the guests do something. Loads go to guests in turn: guest i does loads[i % len(loads)]."""

    name: str
    seconds: Seconds
    loads: Annotated[tuple[Load, ...], msgspec.Meta(min_length=1)] = (Load.IDLE,)


class Ladder(Section, frozen=True, kw_only=True):
    """Add guests one by one until memory within the budget is used up; `guests.count` is the most.

    Each guest touches touch_fraction of its RAM with random bytes, which it frees again, before the next one starts.
    settle_seconds is the longest wait for savings to come to rest after each.
    """

    touch_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    settle_seconds: Seconds = 60.0


class Plan(Section, frozen=True, kw_only=True):
    """The whole plan.

    budget is the memory limit of the cgroup that holds QEMUs, broker and daemon; empty: none (then the cgroup only
    counts). scan_rate_pages is per guest and second, for memshare; 0: `memshare daemon` decides. oracle_seconds lie
    between two oracles, for which the guests stop. slack_seconds is how long a guest may take to boot. The engine shares from
    the first guest's start, or, with start_phase, from the beginning of the phase of that name.
    """

    name: str
    description: str = ""
    guests: Guests
    engines: Annotated[tuple[EngineKind, ...], msgspec.Meta(min_length=1)]
    repeats: Annotated[int, msgspec.Meta(ge=1)] = 1
    budget: str = ""
    scan_rate_pages: Annotated[int, msgspec.Meta(ge=0)] = 0
    oracle_seconds: Seconds = 15.0
    slack_seconds: Seconds = 240.0
    start_phase: str = ""
    phase: tuple[Phase, ...] = ()
    ladder: Ladder | None = None

    @property
    def budget_bytes(self) -> int | None:
        """The limit, or None."""
        return parse_size(self.budget) if self.budget else None

    def runs(self) -> list[tuple[int, EngineKind]]:
        """Repeats and engines in the order in which they run: interleaved, so that slow changes of the host hit all."""
        return [(repeat, engine) for repeat in range(self.repeats) for engine in self.engines]


def parse_size(text: str) -> int:
    """Return bytes; raises UsageError."""
    factor = SUFFIXES.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdigit() or not int(digits):
        raise UsageError(f"{text!r}: not a size such as 512M")
    return int(digits) * factor


def decode(data: dict[str, Any], where: str) -> Plan:
    """Check a plan; raises UsageError that names where and the key."""
    try:
        plan = msgspec.convert(data, Plan)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}") from error
    for key, text in (
        ("guests.ram", plan.guests.ram),
        ("guests.integrity-bytes", plan.guests.integrity_bytes),
        ("budget", plan.budget or "1M"),
    ):
        try:
            parse_size(text)
        except UsageError as error:
            raise UsageError(f"{where}: {key}: {error}") from error
    if bool(plan.phase) == bool(plan.ladder):
        raise UsageError(f"{where}: a plan has either phases or a ladder")
    if plan.ladder and not plan.budget:
        raise UsageError(f"{where}: a ladder needs a budget")
    names = [phase.name for phase in plan.phase]
    if len(set(names)) < len(names):
        raise UsageError(f"{where}: two phases have one name")
    if BOOT in names:
        raise UsageError(
            f"{where}: no phase can be named {BOOT!r}: that is what comes before the first"
        )
    if plan.start_phase and plan.start_phase not in names:
        raise UsageError(f"{where}: start-phase: there is no phase named {plan.start_phase!r}")
    if len(set(plan.engines)) < len(plan.engines):
        raise UsageError(f"{where}: engines: one is named twice")
    return plan


def shipped() -> list[Path]:
    """Return the files of the plans that come with memshare."""
    return sorted(SHIPPED.glob("*.toml"))


def find(name: str) -> Path:
    """Return the file of a plan: that of a name, unless it is a path itself."""
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    path = SHIPPED / f"{name}.toml"
    if not path.exists():
        names = ", ".join(path.stem for path in shipped())
        raise UsageError(f"no plan named {name}", f"give a file, or one of {names}")
    return path


def load(path: Path) -> Plan:
    """Read a plan; raises UsageError."""
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or '').lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    return decode(data, str(path))
