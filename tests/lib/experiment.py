# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up runs of an experiment, for tests of what is made of them. Nothing in them was measured.

`python -m tests.lib.experiment` writes tests/golden/experiment anew, with the report that is made of it.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from memshare.experiment import page, recording, report
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import (
    Experiment,
    GuestReading,
    OracleReading,
    Record,
    RunFolder,
    RunResult,
    Sample,
    Step,
    write_file,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "experiment"
SAID = "SYNTHETIC: made up by tests/lib/experiment.py, nothing was measured"

MIB = 1 << 20
RAM_BYTES = 512 * MIB
STEP_SECONDS = 4
BOOT_SECONDS = 40.0
END_SECONDS = 160.0
LOAD_FROM_SECONDS = 100.0

PLAN = """# SPDX-License-Identifier: GPL-2.0-or-later
name = "synthetic"
description = "Made up, to test what reports make of recordings."
engines = ["off", "ksm-full", "memshare"]
repeats = 2
oracle-seconds = 8

[guests]
count = 2

[[phase]]
name = "settle"
seconds = 60

[[phase]]
name = "load"
seconds = 60
loads = ["web"]
"""

LADDER = """# SPDX-License-Identifier: GPL-2.0-or-later
name = "ladder"
description = "Made up, to test what reports make of ladders."
engines = ["off", "ksm-full", "memshare"]
budget = "2G"

[guests]
count = 12
image = "zero-on-free"

[ladder]
"""


class Behaviour(NamedTuple):
    """What an engine is made to do. share: of what can be freed it frees that much in the end."""

    share: float
    seconds: float  # until two thirds of that
    cpu_ratio: float  # of a core while it converges
    steady_cpu_ratio: float
    slowdown: float


BEHAVIOURS = {
    EngineKind.OFF: Behaviour(0.0, 1.0, 0.0, 0.0, 0.0),
    EngineKind.KSM_FULL: Behaviour(0.99, 6.0, 0.95, 0.9, 0.09),
    EngineKind.MEMSHARE: Behaviour(0.97, 8.0, 0.15, 0.01, 0.004),
}


def phase_at(seconds: float) -> str:
    """The phase that a made-up run is in."""
    if seconds < BOOT_SECONDS:
        return "boot"
    return "settle" if seconds < LOAD_FROM_SECONDS else "load"


def freed_ratio(engine: EngineKind, seconds: float) -> float:
    """The fraction of the oracle at a time: it converges, and falls back a little when load begins."""
    behaviour = BEHAVIOURS[engine]
    grown = 1 - math.exp(-max(0.0, seconds - BOOT_SECONDS / 2) / behaviour.seconds)
    dent = (
        0.05 * math.exp(-(seconds - LOAD_FROM_SECONDS) / 10) if seconds >= LOAD_FROM_SECONDS else 0
    )
    return round(behaviour.share * max(0.0, grown - dent), 3)


def held_bytes(seconds: float) -> int:
    """What two guests hold together."""
    loaded = max(0.0, seconds - LOAD_FROM_SECONDS) / (END_SECONDS - LOAD_FROM_SECONDS)
    return int(min(1.0, seconds / BOOT_SECONDS) * 360 * MIB + loaded * 400 * MIB)


def sample(engine: EngineKind, repeat: int, seconds: float) -> Sample:
    """The host's side of a moment."""
    behaviour = BEHAVIOURS[engine]
    up = min(2, int(seconds / (BOOT_SECONDS / 2)))
    held = held_bytes(seconds)
    freed = int(freed_ratio(engine, seconds) * 0.55 * held)
    used = held - freed + 150 * MIB + repeat * 3 * MIB
    converging = min(seconds, BOOT_SECONDS + 20)
    cpu = behaviour.cpu_ratio * converging + behaviour.steady_cpu_ratio * (seconds - converging)
    is_on = engine is not EngineKind.OFF
    return Sample(
        seconds=seconds,
        phase=phase_at(seconds),
        guests_up=up,
        ram_given_bytes=up * RAM_BYTES,
        cgroup_bytes=used + 90 * MIB,
        cgroup_kernel_bytes=12 * MIB,
        cgroup_cache_bytes=90 * MIB,
        used_bytes=used,
        host_used_bytes=used + 900 * MIB,
        pss_bytes=used - 20 * MIB,
        saved_zero_bytes=freed // 4 if is_on else None,
        saved_content_bytes=freed - freed // 4 if is_on else None,
        scan_cpu_seconds=round(cpu + repeat * 0.1 * bool(cpu), 2),
        scanned_pages=int(4000 * seconds) if is_on else None,
        breaks=int(10 * seconds) if is_on else None,
        psi_some_seconds=0.0,
        psi_full_seconds=0.0,
    )


def oracle(engine: EngineKind, seconds: float) -> OracleReading:
    """An oracle at a moment."""
    held = held_bytes(seconds)
    most = int(0.55 * held)
    freed = int(freed_ratio(engine, seconds) * most)
    return OracleReading(
        seconds=seconds,
        phase=phase_at(seconds),
        held_bytes=held,
        held_zero_bytes=held // 6,
        frames_bytes=held - freed,
        freed_bytes=freed,
        oracle_bytes=most,
        stopped_seconds=0.4,
    )


def reading(engine: EngineKind, repeat: int, guest: int, seconds: float) -> GuestReading:
    """What a guest says of a moment."""
    behaviour = BEHAVIOURS[engine]
    wobble = (int(seconds) * 7 + guest * 3 + repeat * 5) % 11
    boot = guest * 13 + (repeat * 21 + len(engine) * 5) % 17  # no two boots are equally fast
    count = int((2000 + wobble * 10 + boot) * (1 - behaviour.slowdown))
    slow = 2 + int(60 * behaviour.slowdown)
    return GuestReading(
        seconds=seconds,
        guest=f"guest{guest}",
        phase="load",
        load="web",
        interval_seconds=1.0,
        operations=count,
        latency_us={"450": count - 40 - slow, "1800": 40, str(7200 + 90 * slow): slow},
        longest_stall_us=2000 + 100 * wobble + int(90000 * behaviour.slowdown),
        integrity="ok",
    )


def write_lines(path: Path, lines: Sequence[Record]) -> None:
    """Write a .jsonl file."""
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def times(start: float, end: float, step: float) -> list[float]:
    """Moments from start to before end."""
    return [start + step * number for number in range(int((end - start) / step))]


def write_run(folder: RunFolder, repeat: int, engine: EngineKind, steps: Sequence[Step]) -> None:
    """Write a run."""
    folder.path.mkdir(parents=True)
    write_lines(
        folder.samples,
        [sample(engine, repeat, at) for at in times(4, END_SECONDS + 1, STEP_SECONDS)],
    )
    write_lines(folder.oracles, [oracle(engine, at) for at in times(12, END_SECONDS + 1, 8)])
    write_lines(
        folder.guests,
        [
            reading(engine, repeat, guest, at)
            for at in times(LOAD_FROM_SECONDS + 4, END_SECONDS, STEP_SECONDS / 2)
            for guest in range(2)
        ],
    )
    write_file(
        folder.result,
        RunResult(
            repeat=repeat,
            engine=engine,
            started_utc=f"2026-11-26T00:0{repeat}:00Z",
            wall_seconds=END_SECONDS + 5,
            last_boot_seconds=BOOT_SECONDS,
            phases={
                "settle": (BOOT_SECONDS, LOAD_FROM_SECONDS),
                "load": (LOAD_FROM_SECONDS, END_SECONDS),
            },
            integrity="ok",
            ended="budget" if steps else "finished",
            steps=tuple(steps),
            longest_oracle_stop_seconds=0.4,
            busy_before_ratio=0.05,
        ),
    )


def rungs(engine: EngineKind) -> list[Step]:
    """A ladder's rungs, the last above a budget of 2 GiB."""
    each = {EngineKind.OFF: 600, EngineKind.KSM_FULL: 260, EngineKind.MEMSHARE: 230}[engine]
    most = 2048 // each + 1
    return [
        Step(
            guests=guests,
            seconds=min(12.0 * guests, END_SECONDS),
            ram_given_bytes=guests * RAM_BYTES,
            used_bytes=guests * each * MIB,
            touched_fraction=0.93,
        )
        for guests in range(1, most + 1)
    ]


def write_experiment(folder: Path, plan: str = PLAN) -> None:
    """Write a whole experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(plan)
    write_file(
        folder / "experiment.json",
        Experiment(
            plan="synthetic",
            command=f"none. {SAID}",
            started_utc="2026-11-26T00:00:00Z",
            host={
                "kernel": SAID,
                "cpu_model": "none",
                "cpus": 2,
                "ram_bytes": 24 << 30,
                "qemu": "none",
                "memshare": "none",
                "thp": "madvise",
                "image": {"suite": "bookworm", "packages": 0},
            },
        ),
    )
    steps = recording.plan.load(folder / "plan.toml")
    for repeat, engine in steps.runs():
        write_run(
            RunFolder(folder, repeat, engine), repeat, engine, rungs(engine) if steps.ladder else []
        )


def write_golden(folder: Path) -> None:
    """Write the report of what lies in the folder, as tests expect it: with marks for plots.

    Plots change with matplotlib, and so are no part of what is compared.
    """
    made = report.build(recording.read(folder))
    report.write(made, folder)
    marks = [page.Drawing(f"plot {n}", f"caption {n}", f"<svg><!-- {n} --></svg>") for n in "12"]
    (folder / "report.html").write_text(page.render(made, marks))


if __name__ == "__main__":
    shutil.rmtree(GOLDEN)
    write_experiment(GOLDEN)
    write_golden(GOLDEN)
