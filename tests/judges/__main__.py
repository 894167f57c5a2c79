# SPDX-License-Identifier: GPL-2.0-or-later
"""Have memtest86+, memtester and stress-ng judge the memory of guests that share it, `./dev judges`.

A quarter of an hour on two cores; most of it is memtest86+, which also waits for memory to fade. Exit 0 only when
no judge found an error and pages were merged under each.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lib.broker import Broker
from tests.lib.judges import Command, Judge, Memtest, Verdict, judge_sharing_guests
from tests.lib.payload import sharing

from memshare.bench.fleet import build_image
from memshare.bench.progress import Progress
from memshare.render import Column, Unit, render_table

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 3600.0
MERGED_PAGES_BAR = 1000

COLUMNS = (
    Column("judge", "JUDGE"),
    Column("seconds", "SECONDS", Unit.COUNT),
    Column("merged", "PAGES MERGED", Unit.COUNT),
    Column("breaks", "BREAKS", Unit.COUNT),
    Column("rebuilt", "REBUILT", Unit.COUNT),
    Column("errors", "ERRORS", Unit.COUNT),
)


def bench(boot: Path, folder: Path, passes: int) -> list[Judge]:
    """All judges, with as much memory as lets them end."""
    return [
        Command(boot, folder, 128, "memtester 16M 1"),
        Command(
            boot,
            folder,
            128,
            "stress-ng --vm 1 --vm-bytes 16M --vm-keep --mmap 1 --mmap-bytes 8M --memcpy 1 --verify"
            " --temp-path /tmp --timeout 90s",
        ),
        Memtest(folder, 64, passes),
    ]


async def run(judges: Sequence[Judge], progress: Progress) -> list[Verdict]:
    """Hear one judge after the other, each with a broker of its own."""
    verdicts = []
    for judge in judges:
        with Broker("--group", "default", "--allow-by-mode", "--socket-mode", "0666") as broker:
            verdicts.append(
                await judge_sharing_guests(
                    judge, sharing(broker), DEADLINE_SECONDS, progress.update
                )
            )
    return verdicts


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="./dev judges", description=__doc__)
    parser.add_argument("--passes", type=int, default=1, help="of memtest86+ (1)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, to build guests")
    boot, folder = (
        build_image([str(ROOT / "guests" / name / "build.sh")]) for name in ("linux", "judges")
    )
    progress = Progress()
    try:
        verdicts = asyncio.run(run(bench(boot, folder, options.passes), progress))
    finally:
        progress.end()
    rows = [
        {
            "judge": verdict.judge,
            "seconds": round(verdict.seconds),
            "merged": verdict.merged_pages,
            "breaks": verdict.breaks,
            "rebuilt": verdict.rebuilt_pages,
            "errors": verdict.errors,
        }
        for verdict in verdicts
    ]
    render_table(COLUMNS, rows, sys.stdout)
    return 0 if all(v.merged_pages >= MERGED_PAGES_BAR and not v.errors for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
