# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench status`: how long `memshare status` takes on a host with many guests, with a daemon and without.

The guests are stock QEMUs with the plugin and without a machine: they have a monitor and nothing to run. There
is a broker, and they are its clients. What is timed is the whole process, from fork to exit, of a package
that is installed as any other: a checkout's own installation looks at each start whether it has to compile.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import click
import msgspec

import memshare
from memshare.bench.daemon import CONFIG, SOCKET, configuration, open_daemon
from memshare.bench.frames import GROUP
from memshare.bench.machine import QEMU, end_process
from memshare.bench.progress import Progress
from memshare.bench.rig import SOURCE, finish, machine_facts, session
from memshare.bench.workers import open_broker
from memshare.cli import run
from memshare.clients.daemon import ask
from memshare.clients.fleet import Sources, read_fleet
from memshare.errors import MeasurementError, MemshareError
from memshare.model import PLUGIN_FILE

BAR_MS = 250.0
BAR_GUESTS = 50
START_SECONDS = 120.0
MAIN = "from memshare.cli import main; main()"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Wall-clock times of whole processes. direct_ms: without a daemon, the median. python_ms: one that does nothing."""

    guests: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    direct_ms: float
    python_ms: float
    runs_ms: list[float]
    runs_direct_ms: list[float]
    kernel: str
    cpu_model: str
    load_before: float


def install(folder: Path) -> Path:
    """Make an environment with this package in it, and return its Python."""
    venv.create(folder, with_pip=False)
    packages = next(folder.glob("lib/python*/site-packages"))
    shutil.copytree(
        Path(memshare.__file__).parent, packages / "memshare", ignore=shutil.ignore_patterns("*.so")
    )
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


@asynccontextmanager
async def open_guests(folder: Path, plugin: Path, count: int) -> AsyncIterator[Path]:
    """Start guests and wait until each answers; yields the folder of their monitors."""
    monitors = folder / "qmp"
    monitors.mkdir()
    async with AsyncExitStack() as stack:
        for number in range(count):
            name = f"guest{number}"
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig=KILL", QEMU, "-name", name),
                *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-qmp", f"unix:{monitors}/{name}.qmp,server=on,wait=off"),
                *("-plugin", f"{plugin},socket={folder}/{GROUP}.sock,group={GROUP}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.push_async_callback(end_process, process)
        deadline = time.monotonic() + START_SECONDS
        while True:
            found = await read_fleet(Sources(qmp_dirs=(monitors,), uris=()))
            if sum(domain.stats is not None for domain in found) == count:
                break
            if time.monotonic() > deadline:
                raise MemshareError(f"{QEMU}: {len(found)} of {count} guests answer")
            await asyncio.sleep(0.2)
        yield monitors


def timed_ms(command: list[str], expected_guests: int, config: Path | None = None) -> float:
    """Run it and return how long it took; what it says must be true. config: that of a daemon, which must be asked."""
    environment = os.environ | ({"MEMSHARE_CONFIG": str(config)} if config else {})
    begin = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    taken_ms = (time.perf_counter() - begin) * 1e3
    if done.returncode:
        raise MeasurementError(f"memshare status: {done.stderr.strip() or done.returncode}")
    if expected_guests:
        told = json.loads(done.stdout)
        if (told["guests"]["asked"] == "daemon") is not bool(config):
            raise MeasurementError(f"memshare status: it asked the {told['guests']['asked']}")
        domains = told["domains"]
        if sum(domain["mode"] is not None for domain in domains) != expected_guests:
            raise MeasurementError("memshare status: not all guests have answered")
    return taken_ms


def measure(progress: Progress, count: int, repeats: int) -> Result:
    """Start everything and time it."""
    facts = machine_facts()
    build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build")) / "qemu-plugin"
    with tempfile.TemporaryDirectory(prefix="memshare-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the broker, without capabilities, must reach its sockets
        python = str(install(folder / "venv"))
        with open_broker(build / "broker" / "memshared", folder):
            plugin = build / "plugin" / PLUGIN_FILE
            direct, runs = asyncio.run(time_runs(progress, python, folder, plugin, count, repeats))
        bare = [timed_ms([python, "-c", "pass"], 0) for _ in range(repeats)]
    return Result(
        guests=count,
        median_ms=statistics.median(runs),
        fastest_ms=min(runs),
        slowest_ms=max(runs),
        direct_ms=statistics.median(direct),
        python_ms=statistics.median(bare),
        runs_ms=runs,
        runs_direct_ms=direct,
        **facts,
    )


async def time_runs(
    progress: Progress, python: str, folder: Path, plugin: Path, count: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Return what each run took, while the guests are there: first asking them, then a daemon that knows all of them."""
    progress.update(f"starting {count} guests")
    async with open_guests(folder, plugin, count) as monitors:
        broker = folder / "control.sock"
        asks_daemon = [python, "-c", MAIN, "status", "-o", "json", "--broker", str(broker)]
        asks_guests = [*asks_daemon, "--qmp-dir", str(monitors)]
        timed_ms(asks_guests, count)  # Python compiles
        direct, runs = [], []
        for number in range(repeats):
            progress.update(f"memshare status, asking guests: {number} of {repeats}")
            direct.append(timed_ms(asks_guests, count))
        async with open_daemon(folder, configuration(folder, broker, GROUP)):
            await knows_all(folder / SOCKET, count)
            for number in range(repeats):
                progress.update(f"memshare status, asking the daemon: {number} of {repeats}")
                runs.append(timed_ms(asks_daemon, count, folder / CONFIG))
        return direct, runs


async def knows_all(socket: Path, count: int) -> None:
    """Wait until the daemon has figures of all guests."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        domains = (await ask(socket, "view"))["view"]["domains"]
        if sum(domain["stats"] is not None for domain in domains) == count:
            return
        if time.monotonic() > deadline:
            raise MemshareError(f"the daemon knows {len(domains)} guests, not all of {count}")
        await asyncio.sleep(0.2)


def misses(result: Result) -> list[str]:
    """Say which bar was missed. It holds for so many guests, and no fewer."""
    if result.guests < BAR_GUESTS or result.median_ms <= BAR_MS:
        return []
    return [f"{result.guests} guests: {result.median_ms:.0f} ms, bar {BAR_MS:.0f} ms"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--guests", type=click.IntRange(min=1), default=BAR_GUESTS, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(*, guests: int, repeats: int, json_file: Path | None) -> None:
    """Time `memshare status`, as root, against the bar for 50 guests; exit 1 when it is missed.

    A quick look: ./dev bench status --guests 5 --repeats 3
    """
    with session(json_file) as progress:
        result = measure(progress, guests, repeats)
    print(
        f"memshare status, {result.guests} guests: {result.median_ms:.0f} ms "
        f"({result.fastest_ms:.0f} to {result.slowest_ms:.0f}), bar {BAR_MS:.0f}; "
        f"of which Python's start {result.python_ms:.0f}; without a daemon {result.direct_ms:.0f}"
    )
    finish([result], json_file, misses(result))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench status")
