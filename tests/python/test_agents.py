# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that run inside guests, tried here with little memory."""

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from memshare.experiment.guest import Report
from memshare.experiment.plan import Load
from memshare.experiment.record import GuestReading

SOURCE = Path(__file__).resolve().parents[2] / "guests" / "agents"
PAGE_BYTES = 4096
MIB = 1 << 20
FILES = 32
DEADLINE_SECONDS = 60.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    subprocess.run([str(SOURCE / "build.sh"), str(folder)], check=True)
    return folder


class Trial:
    """A guest's programs with a folder instead of the guest."""

    def __init__(self, programs: Path, folder: Path, machine_id: str) -> None:
        """Say how much memory there is: half of it is in use."""
        self.folder = folder
        self._programs = programs
        self._environment = dict(os.environ, MEMSHARE_RUN=str(folder))
        folder.mkdir()
        (folder / "machine-id").write_text(machine_id)
        self.set_memory(total=64 * MIB, free=32 * MIB)

    def set_memory(self, total: int, free: int) -> None:
        fields = {"MemTotal": total, "MemFree": free, "MemAvailable": free}
        (self.folder / "meminfo").write_text(
            "".join(f"{name}:  {size >> 10} kB\n" for name, size in fields.items())
        )

    def call(self, *arguments: str, port: int = 0) -> str:
        done = subprocess.run(
            [str(self._programs / arguments[0]), *arguments[1:]],
            check=False,
            env=self._environment | ({"MEMSHARE_PORT": str(port)} if port else {}),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def memory_of(self, *arguments: str) -> int:
        """Run a program; the most memory that it had. Its parent is a small process that has no other children."""
        parent = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)"
        )
        done = subprocess.run(
            [sys.executable, "-c", parent, str(self._programs / arguments[0]), *arguments[1:]],
            check=True,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        return int(done.stdout)

    def report(self) -> GuestReading:
        """Decode what the runner will write down."""
        said = json.loads(self.call("report"))
        return msgspec.convert(said | {"seconds": 0.0, "guest": "g", "phase": "p"}, GuestReading)

    def load_died(self) -> bool:
        return msgspec.json.decode(self.call("report"), type=Report).load_died

    def report_until(self, is_so: Callable[[GuestReading], bool]) -> GuestReading:
        """Ask until it is so; the last word when it never is."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so(reading := self.report()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return reading

    def watch(self, operations: int) -> GuestReading:
        """Let a load finish so many operations; the last report."""
        finished = 0

        def is_enough(reading: GuestReading) -> bool:
            nonlocal finished
            finished += reading.operations
            return finished >= operations or reading.integrity != "ok"

        reading = self.report_until(is_enough)
        assert finished >= operations
        return reading

    def end(self) -> None:
        for path in self.folder.glob("*.pid"):
            try:
                os.killpg(int(path.read_text()), signal.SIGKILL)
            except (ValueError, ProcessLookupError):
                continue


@pytest.fixture
def start(programs: Path, tmp_path: Path) -> Iterator[Callable[[str], Trial]]:
    trials: list[Trial] = []

    def start(name: str) -> Trial:
        trials.append(Trial(programs, tmp_path / name, name))
        return trials[-1]

    yield start
    for trial in trials:
        trial.end()


@pytest.fixture
def trial(start: Callable[[str], Trial]) -> Trial:
    return start("one")


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    """Serve in the background; yields the port."""
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait_for_file(trial: Trial, number: int) -> None:
    """Until the verifier of 2 MiB has written that file; it writes them in order."""
    path = trial.folder / "files" / f"{number:02}"
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (path.exists() and path.stat().st_size == 2 * MIB // FILES):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether it lives, and is not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pages(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]


def test_the_first_report_says_what_is_not_measured_yet(trial: Trial) -> None:
    first = trial.report()
    assert (first.load, first.operations, first.latency_us) == ("idle", 0, {})
    assert first.longest_stall_us is None
    assert first.integrity == "no verifier was started"


def test_each_report_is_about_the_time_since_the_last(trial: Trial) -> None:
    trial.call("load", "compile")
    began = time.monotonic()
    busy = trial.report_until(lambda reading: reading.operations > 0)
    assert busy.load == Load.COMPILE
    assert sum(busy.latency_us.values()) == busy.operations
    assert all(int(bound) > 0 for bound in busy.latency_us)
    trial.call("load", "idle")
    idle = trial.report_until(lambda reading: (reading.longest_stall_us or 0) > 0)
    assert (idle.load, idle.operations) == ("idle", 0)
    assert idle.longest_stall_us >= 1000  # it sleeps for a millisecond
    assert idle.interval_seconds <= time.monotonic() - began


def test_a_load_that_is_ended_leaves_no_process(trial: Trial) -> None:
    trial.call("load", "compile")
    trial.report_until(lambda reading: reading.operations > 0)
    group = int((trial.folder / "load.pid").read_text())
    trial.call("load", "idle")
    assert not is_running(group)


def test_a_load_that_died_is_told(trial: Trial) -> None:
    assert not trial.load_died()
    trial.call("load", "compile")
    assert not trial.load_died()
    os.killpg(int((trial.folder / "load.pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not trial.load_died():
        assert time.monotonic() < deadline
    trial.call("load", "allocate")
    assert not trial.load_died()
    trial.call("load", "idle")
    assert not trial.load_died()


@pytest.mark.parametrize("load", [Load.CACHE, Load.ALLOCATE, Load.COMPILE])
def test_loads_that_need_no_server_finish_operations(trial: Trial, load: Load) -> None:
    trial.call("load", load)
    assert trial.report_until(lambda reading: reading.operations > 0).operations > 0


def test_every_load_of_a_plan_is_known(trial: Trial) -> None:
    with pytest.raises(RuntimeError) as said:
        trial.call("load", "nothing")
    assert set(str(said.value).split("load ")[1].strip().split("|")) == set(Load)


def test_integrity_finds_a_flipped_byte(trial: Trial) -> None:
    trial.call("integrity", "start", str(2 * MIB))
    assert trial.report().integrity == "ok"
    wait_for_file(trial, FILES - 1)
    # Verified within seconds, rewritten much later.
    with (trial.folder / "files" / "24").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 0x10]))
    reading = trial.report_until(lambda reading: reading.integrity != "ok")
    expected = f"file 24, page 1, byte 904 is 0x{byte ^ 0x10:02x}, not 0x{byte:02x}"
    assert reading.integrity == expected


def test_integrity_notices_that_its_verifier_is_gone(trial: Trial) -> None:
    trial.call("integrity", "start", str(MIB))
    os.killpg(int((trial.folder / "integrity.pid").read_text()), signal.SIGKILL)
    reading = trial.report_until(lambda reading: reading.integrity != "ok")
    assert reading.integrity == "the verifier has ended"


def test_half_of_the_files_are_the_same_in_all_guests(start: Callable[[str], Trial]) -> None:
    contents = []
    for name in ("one", "two"):
        trial = start(name)
        trial.call("integrity", "start", str(2 * MIB))
        wait_for_file(trial, FILES - 1)
        trial.end()
        contents.append([pages(trial.folder / "files" / f"{i:02}") for i in range(FILES)])
    # Before the first pass ends, nothing has been rewritten yet.
    same = [one == two for one, two in zip(*contents, strict=True)]
    assert same == [True] * (FILES // 2) + [False] * (FILES // 2)
    distinct = {page for guest in contents for file in guest for page in file}
    assert len(distinct) == 3 * MIB // PAGE_BYTES


def test_integrity_refuses_what_holds_no_page(trial: Trial) -> None:
    for size in ("0", "4096", "32M"):
        with pytest.raises(RuntimeError, match="usage: integrity start BYTES"):
            trial.call("integrity", "start", size)


def test_touch_writes_what_is_wanted_and_no_more(trial: Trial) -> None:
    said = json.loads(trial.call("touch", "0.25"))  # half is in use already
    assert said == {"touched_bytes": 32 * MIB, "ram_bytes": 64 * MIB}
    trial.set_memory(total=1024 * MIB, free=768 * MIB)
    most = trial.memory_of("touch", "0.5")
    assert 512 * MIB <= most < 512 * MIB + 16 * MIB  # this meminfo never says that it is enough


@pytest.mark.parametrize("fraction", ["0", "1.5", "half", ""])
def test_touch_refuses_what_is_no_fraction(trial: Trial, fraction: str) -> None:
    with pytest.raises(RuntimeError, match="usage: touch FRACTION"):
        trial.call("touch", fraction)


def test_pages_are_unlike_each_other_and_do_not_compress(trial: Trial, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    trial.call("load", "files", str(site))
    contents = [page for path in sorted(site.iterdir()) for page in pages(path)]
    assert len(set(contents)) == len(contents)
    whole = b"".join(contents)
    assert len(zlib.compress(whole)) >= len(whole)


class Site(SimpleHTTPRequestHandler):
    """A web server that keeps connections open and its mouth shut."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one piece, as nginx sends them

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("is_spoilt", [False, True])
def test_web_compares_what_it_gets(trial: Trial, tmp_path: Path, is_spoilt: bool) -> None:
    site = tmp_path / "site" / "files"
    site.mkdir(parents=True)
    trial.call("load", "files", str(site))
    for path in site.iterdir() if is_spoilt else ():
        path.write_bytes(bytes(path.stat().st_size))
    handler = partial(Site, directory=str(site.parent))
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)) as port:
        trial.call("integrity", "start", str(MIB))
        trial.call("load", "web", port=port)
        if is_spoilt:
            reading = trial.report_until(lambda reading: reading.integrity != "ok")
            assert reading.integrity.startswith("web: file ")
        else:
            assert trial.watch(20).integrity == "ok"
        trial.end()


class Redis(socketserver.StreamRequestHandler):
    """As much of redis as the load asks for."""

    is_forgetful = False

    def handle(self) -> None:
        """Answer until the client goes."""
        values: dict[bytes, bytes] = {}
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            if words[0] == b"SET":
                values[words[1]] = bytes(len(words[2])) if self.is_forgetful else words[2]
                self.wfile.write(b"+OK\r\n")
            else:
                value = values[words[1]]
                self.wfile.write(b"$%d\r\n%s\r\n" % (len(value), value))


@pytest.mark.parametrize("is_forgetful", [False, True])
def test_database_compares_what_it_gets(trial: Trial, is_forgetful: bool) -> None:
    handler = type("Handler", (Redis,), {"is_forgetful": is_forgetful})
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)) as port:
        trial.call("integrity", "start", str(MIB))
        trial.call("load", "database", port=port)
        if is_forgetful:
            reading = trial.report_until(lambda reading: reading.integrity != "ok")
            assert reading.integrity.startswith("database: key ")
        else:
            assert trial.watch(1000).integrity == "ok"
        trial.end()
