# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev torture``: several processes and a real broker, stopped and killed at random.

Prints one line of JSON. Ends with 1 where a byte was lost, or where nothing was put to the test.
Needs root, for the swap file.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import msgspec
from tests.lib.broker import Broker
from tests.lib.native import ROOT, library
from tests.lib.swap import swap_file
from tests.torture.guest import Report

KINDS = ("rebuild", "io", "rebuild", "io")
SWAP_BYTES = 64 << 20
END_SECONDS = 120
PATIENCE = 4  # times as long as asked for, for what must have happened


class Life:
    """One guest process from its start to its end, which it says or is killed."""

    def __init__(self, broker: Broker, directory: Path, seed: int, kind: str) -> None:
        self.kind = kind
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
        arguments = [str(broker.socket_path()), str(directory), str(seed), kind]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.guest", *arguments],
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(library("faults")), "PYTHONFAULTHANDLER": "1"},
            stdin=subprocess.PIPE,
            stdout=self._said,
        )

    def report(self) -> Report | None:
        """The last thing it said in full; None where it did not come to that."""
        lines = os.pread(self._said.fileno(), 1 << 26, 0).splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        return msgspec.json.decode(whole[-1], type=Report) if whole else None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def end(self) -> str | None:
        """Let it compare everything; what went wrong."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            code = self.process.wait(END_SECONDS)
        except BrokenPipeError:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"a guest ({self.kind}) hung"
        report = self.report()
        if code != 0 or report is None or not report.last:
            return f"a guest ({self.kind}) ended with {code}"
        return None


class Run:
    """All of it."""

    def __init__(self, seed: int, directory: Path) -> None:
        self._random = random.Random(seed)
        self._directory = directory
        self._broker = self._start_broker()
        self._lives: list[Life] = []
        self._dead: list[Life] = []
        self.kills = self.stops = 0
        self.problems: list[str] = []
        for kind in KINDS:
            self._start(kind)

    def _start_broker(self) -> Broker:
        return Broker("--group", "default", "--allow-by-mode", directory=self._directory)

    def _start(self, kind: str) -> None:
        seed = self._random.randrange(1 << 24)
        self._lives.append(Life(self._broker, self._directory, seed, kind))

    def harass(self, seconds: float) -> None:
        """Stop and kill, until the time is up or a guest has ended by itself."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.problems:
            time.sleep(self._random.uniform(0.1, 1.0))
            what = self._random.random()
            # The first two live through it all, so that long lives are seen as well.
            if what < 0.15:
                self._kill(self._random.randrange(2, len(self._lives)))
            elif what < 0.3:
                self._broker.kill()
                self.kills += 1
                time.sleep(self._random.uniform(0, 0.5))
                self._broker = self._start_broker()
            elif what < 0.7:
                life = self._random.choice(self._lives)
                self._stop_for_a_while(life.process)
            else:
                self._stop_for_a_while(self._broker.process)
            for life in self._lives:
                if life.process.poll() is not None:
                    self.problems.append(
                        f"a guest ({life.kind}) ended by itself with {life.process.returncode}"
                    )

    def _kill(self, index: int) -> None:
        life = self._lives.pop(index)
        life.kill()
        self.kills += 1
        self._dead.append(life)
        self._start(life.kind)

    def _stop_for_a_while(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._random.uniform(0.01, 0.4))
        process.send_signal(signal.SIGCONT)
        self.stops += 1

    def end(self) -> list[Report]:
        """Every guest compares everything; what all said, the dead too."""
        for life in self._lives:
            problem = life.end()
            if problem:
                self.problems.append(problem)
        self._broker.kill()
        return self.reports()

    def reports(self) -> list[Report]:
        """What all have said so far, the dead too."""
        reports = [life.report() for life in self._lives + self._dead]
        return [report for report in reports if report]

    def has_tested(self) -> bool:
        """Whether writers have slept in windows, and broken pages were merged again."""
        reports = self.reports()
        return any(one.slept for one in reports) and any(one.remerged for one in reports)

    def kill_all(self) -> None:
        """Leave nothing behind, whatever has happened."""
        self._broker.kill()
        for life in self._lives:
            life.kill()


def main() -> int:
    """Torture for so many seconds; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="./dev torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 24))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, for the swap file")
    with (
        tempfile.TemporaryDirectory(prefix=".memshare-torture-", dir=ROOT) as directory,
        swap_file(SWAP_BYTES),
    ):
        run = Run(options.seed, Path(directory))
        try:
            run.harass(options.seconds)
            # On a slow machine, or with unlucky stops, a short run may see no page merge for the second time.
            until = time.monotonic() + PATIENCE * options.seconds
            while not run.has_tested() and not run.problems and time.monotonic() < until:
                run.harass(options.seconds / 10)
            reports = run.end()
        finally:
            run.kill_all()
    sums = {
        name: sum(getattr(report, name) for report in reports)
        for name in ("writes", "slept", "merged", "remerged", "rebuilt")
    }
    lost = sum(report.lost for report in reports)
    line = {**sums, "kills": run.kills, "stops": run.stops, "lost": lost}
    print(json.dumps({"seconds": options.seconds, "seed": options.seed, **line}), flush=True)
    for problem in run.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if run.problems or lost or not sums["slept"] or not sums["remerged"] else 0


if __name__ == "__main__":
    sys.exit(main())
