# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of a Windows guest, compiled by Mono for the same version of C#, and run here.

What only Windows has (starting a process that inherits nothing, the size of memory) is not tried by this.
"""

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from memshare.clients import procfs
from memshare.experiment.answers import RECIPE

PAGE_BYTES = 4096
NAMES = ("load", "integrity", "report", "touch", "systemctl")
SECONDS = 60.0
INTEGRITY_BYTES = 4 << 20
MASK = (1 << 64) - 1


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What record.GuestReading takes from a guest."""

    load: str
    load_died: bool
    interval_seconds: float
    operations: int
    latency_us: dict[str, int]
    longest_stall_us: int | None
    integrity: str


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs, made as firstboot.ps1 makes them."""
    folder = tmp_path_factory.mktemp("programs")
    sources = sorted((RECIPE / "programs").glob("*.cs"))
    subprocess.run(
        ["mcs", "-langversion:5", "-nologo", "-unsafe", "-optimize", "-warnaserror",
         f"-out:{folder}/load.exe", *sources],
        check=True,
    )  # fmt: skip
    for name in NAMES[1:]:
        shutil.copy(folder / "load.exe", folder / f"{name}.exe")
    return folder


class Guest:
    """Stands for one: a folder of its own for what the programs keep."""

    def __init__(self, programs: Path, state: Path) -> None:
        self._programs = programs
        self.state = state

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mono", self._programs / f"{name}.exe", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={
                **os.environ,
                "MEMSHARE_RUN": str(self.state),
                "MEMSHARE_CHUNKS": "4",
                "MONO_DISABLE_SHARED_AREA": "1",  # which a killed process leaves in /dev/shm
            },
        )

    def ask(self, name: str, *arguments: str) -> str:
        done = self.run(name, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def report(self) -> Report:
        return msgspec.json.decode(self.ask("report"), type=Report)

    def report_until(self, accept: Callable[[Report], bool]) -> Report:
        deadline = time.monotonic() + SECONDS
        while not accept(report := self.report()):
            assert time.monotonic() < deadline, report
        return report

    def pid(self, name: str) -> int:
        return int((self.state / f"{name}.pid").read_text())


@contextmanager
def started(compiled: Path, state: Path) -> Iterator[Guest]:
    """Give a guest, and end what it has left running."""
    state.mkdir()
    try:
        yield Guest(compiled, state)
    finally:
        for path in state.glob("*.pid"):
            pid = int(path.read_text())
            cmdline = Path(f"/proc/{pid}/cmdline")
            if cmdline.exists() and str(compiled).encode() in cmdline.read_bytes():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def guest(compiled: Path, tmp_path: Path) -> Iterator[Guest]:
    with started(compiled, tmp_path / "guest") as one:
        yield one


def test_the_first_report_begins_to_measure_stalls(guest: Guest) -> None:
    first = guest.report()
    assert (first.load, first.operations, first.latency_us) == ("idle", 0, {})
    assert first.longest_stall_us is None
    assert first.integrity == "no verifier was started"
    second = guest.report_until(lambda report: bool(report.longest_stall_us))
    assert second.interval_seconds > 0


def test_a_load_that_died_is_told(guest: Guest) -> None:
    guest.ask("load", "allocate")
    assert not guest.report().load_died
    os.kill(guest.pid("load"), signal.SIGKILL)
    guest.report_until(lambda report: report.load_died)
    guest.ask("load", "idle")
    assert not guest.report().load_died


@pytest.mark.parametrize("load", ["cache", "allocate", "compile"])
def test_a_load_runs_until_the_next_one(guest: Guest, load: str) -> None:
    guest.ask("load", load)
    pid = guest.pid("load")
    report = guest.report_until(lambda report: report.operations > 0)
    assert report.load == load
    assert sum(report.latency_us.values()) == report.operations
    bounds = [int(bound) for bound in report.latency_us]
    assert bounds == sorted(bounds)
    guest.ask("load", "idle")
    cmdline = Path(f"/proc/{pid}/cmdline")
    assert not cmdline.exists() or not cmdline.read_bytes()  # ended, if not yet waited for
    idle = guest.report()
    assert (idle.load, idle.operations, idle.latency_us) == ("idle", 0, {})


def word(number: int) -> int:
    """splitmix64, as it was published."""
    number = number * 0x9E3779B97F4A7C15 & MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & MASK
    return number ^ number >> 31


def page(family: int, first: int, second: int) -> bytes:
    seed = word(word(word(family + 1) + first & MASK) + second & MASK)
    return struct.pack("<512Q", *(word(seed + i & MASK) for i in range(512)))


def damage(pid: int, contents: bytes) -> bool:
    """Change a byte of that page in a process; False when the process does not hold it now."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for mapping in procfs.mappings(pid):
            if mapping.inode or "w" not in mapping.permissions:
                continue
            data = os.pread(memory.fileno(), mapping.length_bytes, mapping.start)
            at = data.find(contents)
            if at >= 0:
                os.pwrite(memory.fileno(), bytes([contents[100] ^ 1]), mapping.start + at + 100)
                return True
    return False


def test_integrity_holds_common_pages_and_notices_one_wrong_byte(guest: Guest) -> None:
    guest.ask("integrity", "start", str(INTEGRITY_BYTES))
    assert guest.report().integrity == "ok"
    # Of part 3, which the same seed makes in each guest, page 5; it is rewritten only after three passes.
    wanted = page(int.from_bytes(b"memshare", "big"), 3 * 2, 5)
    deadline = time.monotonic() + SECONDS
    while not damage(guest.pid("integrity"), wanted):
        assert time.monotonic() < deadline, "no such page"
    report = guest.report_until(lambda report: report.integrity != "ok")
    assert report.integrity == "part 3, page 5, byte 100 is not what was written"
    # For good, and whatever became of the verifier.
    os.kill(guest.pid("integrity"), signal.SIGKILL)
    assert guest.report().integrity == report.integrity


def test_a_verifier_that_has_ended_is_no_integrity(guest: Guest) -> None:
    guest.ask("integrity", "start", str(INTEGRITY_BYTES))
    os.kill(guest.pid("integrity"), signal.SIGKILL)
    guest.report_until(lambda report: report.integrity == "the verifier has ended")


def test_guests_have_seeds_of_their_own(compiled: Path, tmp_path: Path) -> None:
    seeds = set()
    for name in ("one", "other"):
        with started(compiled, tmp_path / name) as guest:
            guest.ask("load", "cache")
            guest.report_until(lambda report: report.operations > 0)
            seeds.add((guest.state / "seed").read_bytes())
    assert len(seeds) == 2


def test_touch_tells_what_was_touched(guest: Guest) -> None:
    found = msgspec.json.decode(guest.ask("touch", "0.000001"), type=dict[str, int])
    assert found["ram_bytes"] == procfs.meminfo()["MemTotal"]
    assert 0 < found["touched_bytes"] <= found["ram_bytes"]


def test_the_system_is_running_where_the_agent_runs(guest: Guest) -> None:
    assert guest.ask("systemctl", "is-system-running", "--wait").strip() == "running"


@pytest.mark.parametrize(
    "command",
    [
        ("load", "web"),
        ("integrity", "start", "4096"),
        ("touch", "1.5"),
        ("touch", "0,5"),
        ("systemctl", "poweroff"),
    ],
)
def test_what_cannot_be_done_is_one_line(guest: Guest, command: tuple[str, ...]) -> None:
    done = guest.run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
