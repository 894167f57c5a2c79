# SPDX-License-Identifier: GPL-2.0-or-later
"""Have guests share for long while everything is done to them at once, `./dev soak`. As root.

All are Debian guests of one group. All but one churn their files, in memory and on disks, and compare them: one does
nothing else, one has disks with direct I/O, one migrates to another QEMU again and again, and one is drained once
a minute. In the last memtester and stress-ng judge its memory by turns, a new guest for each. At the end all are
drained, and nothing may be left in the store. The first error ends the run with 1.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lib.judges import Command
from tests.soak.run import LEAST_GUESTS, Soak, open_soak

from memshare.bench.fleet import build_image
from memshare.bench.progress import Progress
from memshare.render import Column, Unit, render_table

ROOT = Path(__file__).resolve().parents[2]

COLUMNS = (
    Column("guest", "GUEST"),
    Column("verifications", "VERIFIED", Unit.COUNT),
    Column("merged_pages", "PAGES MERGED", Unit.COUNT),
    Column("breaks", "BREAKS", Unit.COUNT),
    Column("rebuilt_pages", "REBUILT", Unit.COUNT),
    Column("zeroed_pages", "ZEROS GIVEN BACK", Unit.COUNT),
    Column("longest_window_us", "LONGEST WINDOW, UNDER US", Unit.COUNT),
)


def judges(boot: Path, folder: Path) -> list[Command]:
    """Short ones: each guest comes, shares, and goes within minutes."""
    return [
        Command(boot, folder, 128, "memtester 8M 1"),
        Command(
            boot,
            folder,
            128,
            "stress-ng --vm 1 --vm-bytes 16M --vm-keep --mmap 1 --mmap-bytes 8M --memcpy 1 --verify"
            " --temp-path /tmp --timeout 45s",
        ),
    ]


def figures(soak: Soak, seconds: float, error: str | None) -> dict[str, Any]:
    """All that the run has come to. Pure."""
    tallies = [(m.name, m.rounds, m.counters) for m in soak.members.values()]
    guests = [
        {
            "guest": name,
            "verifications": verifications,
            "merged_pages": counters.merged_pages,
            "breaks": counters.breaks,
            "rebuilt_pages": counters.rebuilt_pages,
            "zeroed_pages": counters.zeroed_pages,
            "windows": counters.windows,
            "longest_window_us": counters.longest_window_us,
        }
        for name, verifications, counters in tallies
    ]
    judged = {
        "guest": "judged",
        "verifications": soak.verdicts,
        "merged_pages": soak.judged.merged_pages,
        "breaks": soak.judged.breaks,
        "rebuilt_pages": soak.judged.rebuilt_pages,
    }
    drains = soak.drain_seconds
    return {
        "seconds": seconds,
        "guests": [*guests, judged],
        "verifications": sum(row["verifications"] for row in [*guests, judged]),
        "longest_window_us": max((row["longest_window_us"] for row in guests), default=0),
        "migrations": soak.migrations,
        "drains": len(drains),
        "drain_median_seconds": round(statistics.median(drains), 2) if drains else None,
        "drain_longest_seconds": round(max(drains), 2) if drains else None,
        "errors": 0 if error is None else 1,
        "error": error,
    }


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    render_table(COLUMNS, found["guests"], sys.stdout)
    print(
        f"{found['seconds']:.0f} s: {found['verifications']} verifications,"
        f" {found['migrations']} migrations, {found['drains']} drains"
        f" (median {found['drain_median_seconds']} s, longest {found['drain_longest_seconds']} s),"
        f" {found['errors']} errors"
    )


async def run(options: argparse.Namespace, image: Path, judges: Sequence[Command]) -> int:
    """Run it so that SIGTERM ends it as Ctrl-C does: guests and broker first."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    progress = Progress()
    error = None
    async with open_soak(image, judges, progress) as soak:
        try:
            await soak.start(options.guests)
            await soak.run(options.seconds)
        except Exception as raised:
            error = first_line(raised)
        finally:
            progress.end()
        found = figures(soak, options.seconds, error)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
    return 0 if error is None else 1


def first_line(raised: BaseException) -> str:
    """What a person is told: the first of those that were raised together."""
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return str(raised) or repr(raised)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="(1800)")
    parser.add_argument("--guests", type=int, default=6, help=f"(6); {LEAST_GUESTS} at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.guests < LEAST_GUESTS:
        parser.error(f"needs {LEAST_GUESTS} guests at least, one for each thing that is done")
    if os.geteuid() != 0:
        parser.error("needs root, to read page tables and to start guests as another user")
    image, folder = (
        build_image([str(ROOT / "guests" / name / "build.sh")]) for name in ("linux", "judges")
    )
    try:
        return asyncio.run(run(options, image, judges(image, folder)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
