# SPDX-License-Identifier: GPL-2.0-or-later
"""What an experiment writes down, and where. The contract between runner and report.

    FOLDER/plan.toml              the plan, as given
    FOLDER/experiment.json        Experiment: host, command, versions
    FOLDER/RR-ENGINE/samples.jsonl    Sample a line, one a second
    FOLDER/RR-ENGINE/guests.jsonl     GuestReading a line, one a guest and second in which a load reported
    FOLDER/RR-ENGINE/oracles.jsonl    OracleReading a line
    FOLDER/RR-ENGINE/result.json      RunResult; written last and whole: a run without it is made anew

RR is the repeat, from 00. Times are seconds since the run's first guest was started. Counters (those that only grow) are
totals since then. A figure that an engine or host does not have is null, never 0.
"""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from memshare.errors import UsageError
from memshare.experiment.plan import EngineKind


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line or a file."""


class Sample(Record, frozen=True, kw_only=True):
    """The host's side of one second.

    guests_up have booted, ram_given_bytes is their RAM. cgroup_bytes is all memory of the cgroup (QEMUs, broker, store,
    daemon, page cache charged to it), cgroup_kernel_bytes its kernel memory, cgroup_cache_bytes what of it is clean page
    cache of files, which the kernel would give back first. pss_bytes is the sum over the QEMUs, each read once in so many
    seconds as there are guests. used_bytes is what the
    overcommit ratio is computed with: cgroup_bytes less cgroup_cache_bytes. host_used_bytes is the host's MemTotal less
    MemAvailable. saved_* is by the engine's own count: of ksmd, zero is ksm_zero_pages, content is pages_sharing;
    without use_zero_pages zero is null, and content has zeros in it.
    scan_cpu_seconds: engine threads, broker and daemon; or ksmd and ksmtuned. breaks: counter. psi_*: the cgroup's total
    stall time, else the host's.
    """

    seconds: float
    phase: str
    guests_up: int
    ram_given_bytes: int
    cgroup_bytes: int
    cgroup_kernel_bytes: int | None
    cgroup_cache_bytes: int
    used_bytes: int
    host_used_bytes: int
    pss_bytes: int
    saved_zero_bytes: int | None
    saved_content_bytes: int | None
    scan_cpu_seconds: float
    scanned_pages: int | None
    breaks: int | None
    psi_some_seconds: float | None
    psi_full_seconds: float | None


class GuestReading(Record, frozen=True, kw_only=True):
    """What one guest's load says of the time since its last reading.

    operations were finished in interval_seconds by the guest's clock. latency_us maps the upper bound of a bucket (us, as
    text: JSON) to how many of the operations ended in it; buckets grow by an eighth. longest_stall_us is the longest time in
    which a thread that wakes each millisecond did not run. integrity: "ok", or what was found wrong.
    """

    seconds: float
    guest: str
    phase: str
    load: str
    interval_seconds: float
    operations: int
    latency_us: dict[str, int]
    longest_stall_us: int | None
    integrity: str


class OracleReading(Record, frozen=True, kw_only=True):
    """The most that exact sharing could free at that moment, and what was freed; by page tables (see bench.oracle).

    saved_* is the engine's own count of the same moment. pss_bytes is frames_bytes, reckoned by PSS. overhead_bytes is what
    sharing costs beside them by the kernel's accounting, against before it began (see bench.cost). These two are read at
    the end of a phase, and where there is a broker and sharing began after the last boot; else null.
    """

    seconds: float
    phase: str
    held_bytes: int
    held_zero_bytes: int
    frames_bytes: int
    freed_bytes: int
    oracle_bytes: int
    stopped_seconds: float
    saved_zero_bytes: int | None = None
    saved_content_bytes: int | None = None
    pss_bytes: int | None = None
    overhead_bytes: int | None = None


class Step(Record, frozen=True, kw_only=True):
    """A rung of a ladder: what was used when that guest had been counted."""

    guests: int
    seconds: float
    ram_given_bytes: int
    used_bytes: int
    touched_fraction: float


class RunResult(Record, frozen=True, kw_only=True):
    """How a run ended. last_boot_seconds: when the last guest was up. integrity: "ok", or the first that was wrong.

    ended: "finished", "budget" (a ladder that came to its limit), or why it broke off. steps: of a ladder.
    busy_before_ratio: of the time of all the host's CPUs in the last seconds before the run did anything; 1: all were busy.
    """

    repeat: int
    engine: EngineKind
    started_utc: str
    wall_seconds: float
    last_boot_seconds: float
    phases: dict[str, tuple[float, float]]
    integrity: str
    ended: str
    steps: tuple[Step, ...] = ()
    longest_oracle_stop_seconds: float = 0.0
    busy_before_ratio: float | None = None


class Experiment(Record, frozen=True, kw_only=True):
    """Where and how the experiment was made. host: see runner.host_facts."""

    plan: str
    command: str
    started_utc: str
    host: dict[str, Any]


Kind = TypeVar("Kind", bound=Record)


class RunFolder:
    """The files of one run."""

    def __init__(self, experiment: Path, repeat: int, engine: EngineKind) -> None:
        """Know its place; nothing is made."""
        self.path = experiment / f"{repeat:02d}-{engine}"
        self.samples = self.path / "samples.jsonl"
        self.guests = self.path / "guests.jsonl"
        self.oracles = self.path / "oracles.jsonl"
        self.result = self.path / "result.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run need not be made again."""
        return self.result.exists()


class Lines:
    """A .jsonl file that is being written, each line as soon as it is there."""

    def __init__(self, path: Path) -> None:
        """Begin the file."""
        self._file = path.open("wb", buffering=0)
        self._encoder = msgspec.json.Encoder()

    def append(self, value: Record) -> None:
        """Write one line."""
        self._file.write(self._encoder.encode(value) + b"\n")

    def close(self) -> None:
        """End the file."""
        self._file.close()


def read_lines(path: Path, kind: type[Kind]) -> list[Kind]:
    """Read a .jsonl file; one that is not there has no lines. Raises UsageError that names file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or '').lower()}") from error
    decoder = msgspec.json.Decoder(kind)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}:{number}: {error}") from error
    return found


def read_file(path: Path, kind: type[Kind]) -> Kind:
    """Read a .json file; raises UsageError that names it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or '').lower()}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}") from error


def write_file(path: Path, value: Record) -> None:
    """Write a .json file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    part.replace(path)
