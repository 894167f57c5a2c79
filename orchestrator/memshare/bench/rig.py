# SPDX-License-Identifier: GPL-2.0-or-later
"""What measurements of the engine have in common: regions, broker, knobs put back, facts, results.

A measurement's `main` is a click command of its own; everything that it must not forget (root, signals,
an old result that could pass for a new one, exit code 1 where a bar is missed) is in `session` and
`finish`.
"""

import os
import platform
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click
import msgspec

from memshare.bench.frames import GROUP
from memshare.bench.oracle import PAGE_BYTES
from memshare.bench.progress import Progress
from memshare.bench.workers import Worker, open_broker
from memshare.clients import procfs
from memshare.errors import HostError, MeasurementError

SOURCE = Path(__file__).resolve().parents[3]
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
MAPPINGS = 1 << 20  # scattered needs a mapping for each common page and each gap


class Group(NamedTuple):
    """Processes with filled regions and the broker of their group."""

    workers: list[Worker]
    broker_pid: int
    control_socket: Path
    socket: Path

    def start(self, mode: str, *, by_hand: bool = False) -> None:
        """Make an engine in each process, all at once; by hand: without its threads."""
        command = "engine-by-hand" if by_hand else "engine"
        for worker in self.workers:
            worker.send(f"{command} {self.socket} {mode}")
        for worker in self.workers:
            worker.take(command)

    @property
    def pids(self) -> list[int]:
        """The processes and the broker."""
        return [self.broker_pid, *(worker.region.pid for worker in self.workers)]

    def cpu_ns(self) -> int:
        """CPU time that the processes and the broker used so far."""
        return procfs.cpu_ns(self.broker_pid) + sum(worker.cpu_ns() for worker in self.workers)


class Rig:
    """Where the programs are and how large a region is; starts them."""

    def __init__(self, size_bytes: int, progress: Progress) -> None:
        """Remember."""
        build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build"))
        self._worker = build / "tests" / "bench" / "region-worker"
        self._broker = build / "qemu-plugin" / "broker" / "memshared"
        self.size_bytes = size_bytes
        self.progress = progress

    @contextmanager
    def workers(
        self, label: str, case: str, *, count: int = 2, busy: bool = False
    ) -> Iterator[list[Worker]]:
        """Fresh processes with filled regions."""
        self.progress.update(f"{label}: filling {count} regions")
        with ExitStack() as stack:
            started = [
                stack.enter_context(Worker(self._worker, case, side, self.size_bytes, busy=busy))
                for side in range(count)
            ]
            for worker in started:
                worker.ready()
            yield started

    @contextmanager
    def group(
        self, label: str, case: str, *, count: int = 2, busy: bool = False
    ) -> Iterator[Group]:
        """Fresh processes and a fresh broker; `Group.start` makes the engines."""
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="memshare-bench-"))
            )
            folder.chmod(0o755)  # the broker, without capabilities, must reach its sockets
            broker_pid = stack.enter_context(open_broker(self._broker, folder))
            workers = stack.enter_context(self.workers(label, case, count=count, busy=busy))
            yield Group(workers, broker_pid, folder / "control.sock", folder / f"{GROUP}.sock")


def oracle_pages(pages: int, processes: int = 2) -> int:
    """How many pages of all regions of the mix can be freed. Pure.

    A quarter are zeros; of another quarter one side's part is left.
    """
    return pages // 4 + pages // 4 * (processes - 1) // processes


def total_pages(workers: Sequence[Worker]) -> int:
    """Pages of all regions."""
    return sum(worker.region.length_bytes for worker in workers) // PAGE_BYTES


@contextmanager
def many_mappings(count: int = MAPPINGS) -> Iterator[None]:
    """Allow each process so many mappings (the default is enough for any case); put the limit back."""
    before = MAX_MAP_COUNT.read_text()
    try:
        MAX_MAP_COUNT.write_text(str(count))
        yield
    finally:
        MAX_MAP_COUNT.write_text(before)


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end it as Ctrl-C does; a second one does not disturb the clean-up."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(_number: int, _frame: object) -> NoReturn:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, interrupt)


def machine_facts() -> dict[str, Any]:
    """Where the figures come from."""
    models = [
        line.partition(":")[2].strip()
        for line in (procfs.PROC / "cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "kernel": platform.release(),
        "cpu_model": f"{len(models)} x {models[0] if models else platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def parse_size(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Take bytes with K, M or G."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdigit() or int(digits) * factor < 1 << 20 or int(digits) * factor % (1 << 18):
        raise click.BadParameter(f"{text}: not at least 1M in steps of 256K")
    return int(digits) * factor


def number(value: float | None, digits: int) -> str:
    """Return a figure as tables show it; one that is not there is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


@contextmanager
def session(json_file: Path | None) -> Iterator[Progress]:
    """Check for root, end on signals, remove an old result, show where the measurement is."""
    if os.geteuid() != 0:
        raise HostError("this needs root: it reads page tables and sets knobs of the kernel")
    end_on_signals()
    if json_file:
        json_file.unlink(missing_ok=True)  # an old one must not pass for this run's
    progress = Progress()
    try:
        yield progress
    finally:
        progress.end()


def indented(value: object) -> bytes:
    """Return JSON that people can read: a line a value, a list of plain values in one line. Pure."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    lists = re.compile(rb"\[\n\s+([^][{}]+?)\n\s+\]")
    return lists.sub(lambda found: b"[" + re.sub(rb",\n\s+", b", ", found[1]) + b"]", text) + b"\n"


def finish(
    results: Sequence[msgspec.Struct], json_file: Path | None, misses: Sequence[str]
) -> None:
    """Write the results, then say which bars were missed: that is exit code 1."""
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_bytes(indented(results))
        print(f"written: {json_file}")
    if misses:
        raise MeasurementError("; ".join(misses))
