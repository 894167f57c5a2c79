# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments that are interrupted and go on: finished runs are kept, others made anew, nothing is mixed."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from memshare.cli import bench_run
from memshare.clients import procfs
from memshare.errors import MemshareError, UsageError
from memshare.experiment import ksm, run, runner, summary
from memshare.experiment.plan import EngineKind, Plan
from memshare.experiment.record import (
    Experiment,
    GuestReading,
    Lines,
    OracleReading,
    RunFolder,
    RunResult,
    Sample,
    Step,
    read_file,
    read_lines,
    write_file,
)

PLAN = """
name = "p"
engines = ["off", "memshare"]
repeats = 2
guests = { count = 2 }
phase = [{ name = "idle", seconds = 5 }]
"""


def images_of(disk: str, build_seconds: int = 5) -> dict[str, Any]:
    """Facts of an image."""
    return {"minimal": {"disk_sha256": disk, "build_seconds": build_seconds}}


HOST = {
    "kernel": "6.18", "cpu_model": "x", "cpus": 2, "ram_bytes": 1, "thp": "never", "qemu": "7.2", "memshare": "0.1",
    "plugin_sha256": "a", "broker_sha256": "a", "images": images_of("aa"),
}  # fmt: skip
SAMPLE = Sample(
    seconds=1.0,
    phase="idle",
    guests_up=2,
    ram_given_bytes=400,
    cgroup_bytes=150,
    cgroup_kernel_bytes=None,
    cgroup_cache_bytes=50,
    used_bytes=100,
    host_used_bytes=1000,
    pss_bytes=90,
    saved_zero_bytes=None,
    saved_content_bytes=7,
    scan_cpu_seconds=0.5,
    scanned_pages=None,
    breaks=0,
    psi_some_seconds=0.0,
    psi_full_seconds=None,
)
ORACLE = OracleReading(
    seconds=1.0,
    phase="idle",
    held_bytes=300,
    held_zero_bytes=40,
    frames_bytes=210,
    freed_bytes=90,
    oracle_bytes=100,
    stopped_seconds=0.1,
)

# Makes runs that write a line and end well; the third one kills its process in the middle.
CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.python.test_experiment_runner import HOST, fake_run
from memshare.experiment import runner

folder, plan_file = Path(sys.argv[1]), Path(sys.argv[2])
made = 0

async def make(repeat, engine, place):
    global made
    result = await fake_run(repeat, engine, place)
    made += 1
    if made == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

plan = runner.open_folder(folder, plan_file, HOST, resume=False)
asyncio.run(runner.conduct(plan, folder, make))
"""


def result_of(repeat: int, engine: EngineKind, **changes: Any) -> RunResult:
    """Return how a fake run ended."""
    result = RunResult(
        repeat=repeat,
        engine=engine,
        started_utc="2026-01-01T00:00:00",
        wall_seconds=1.0,
        last_boot_seconds=0.5,
        phases={"idle": (0.5, 1.0)},
        integrity="ok",
        ended="finished",
    )
    return msgspec.structs.replace(result, **changes)


async def fake_run(repeat: int, engine: EngineKind, place: RunFolder) -> RunResult:
    """Stand in for a run: its files without any guest."""
    place.path.mkdir(parents=True)
    for path, line in ((place.samples, SAMPLE), (place.oracles, ORACLE)):
        lines = Lines(path)
        lines.append(line)
        lines.close()
    return result_of(repeat, engine)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    """A plan of four runs."""
    path = tmp_path / "p.toml"
    path.write_text(PLAN)
    return path


def opened(tmp_path: Path, plan_file: Path, *, resume: bool = False, **host: Any) -> Plan:
    """Open the experiment in the folder `e`."""
    return runner.open_folder(tmp_path / "e", plan_file, HOST | host, resume=resume)


def test_what_was_killed_goes_on_where_it_was(tmp_path: Path, plan_file: Path) -> None:
    folder = tmp_path / "e"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, folder, plan_file],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL
    places = [RunFolder(folder, r, e) for r, e in opened(tmp_path, plan_file, resume=True).runs()]
    assert [place.is_finished for place in places] == [True, True, False, False]
    assert places[2].samples.exists()
    kept = [place.result.stat().st_mtime_ns for place in places[:2]]

    made = []

    async def make(repeat: int, engine: EngineKind, place: RunFolder) -> RunResult:
        made.append(place.path.name)
        return await fake_run(repeat, engine, place)

    plan = opened(tmp_path, plan_file, resume=True)
    results = asyncio.run(runner.conduct(plan, folder, make))
    assert made == ["01-off", "01-memshare"]
    assert [(r.repeat, r.engine) for r in results] == plan.runs()
    assert [place.result.stat().st_mtime_ns for place in places[:2]] == kept
    assert (folder / "01-off.unfinished-1" / "samples.jsonl").exists()


async def test_how_busy_a_host_is_has_nothing_of_what_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([procfs.CpuTicks(busy=900, total=1000), procfs.CpuTicks(busy=950, total=1200)])
    monkeypatch.setattr(procfs, "cpu_ticks", lambda: next(ticks))
    monkeypatch.setattr(run, "BUSY_SECONDS", 0.0)
    assert await run.busy_ratio() == 0.25


def test_each_interruption_is_kept_apart(tmp_path: Path) -> None:
    place = RunFolder(tmp_path, 0, EngineKind.OFF)
    for number in (1, 2):
        place.path.mkdir()
        runner.clear(place)
        assert not place.path.exists()
        assert (tmp_path / f"00-off.unfinished-{number}").is_dir()
    runner.clear(place)


def test_a_run_that_fails_leaves_no_result_and_ends_the_plan(
    tmp_path: Path, plan_file: Path
) -> None:
    async def make(repeat: int, engine: EngineKind, place: RunFolder) -> RunResult:
        if engine is EngineKind.MEMSHARE:
            raise UsageError("no")
        return await fake_run(repeat, engine, place)

    plan = opened(tmp_path, plan_file)
    with pytest.raises(UsageError, match="no"):
        asyncio.run(runner.conduct(plan, tmp_path / "e", make))
    assert [path.name for path in (tmp_path / "e").glob("*/result.json")] == ["result.json"]


@pytest.mark.parametrize("lacking", ["libmemshare-qemu.so", "memshared", "ksmtuned"])
def test_what_any_engine_lacks_is_said_before_the_first_run(
    tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    plan_file.write_text(PLAN.replace('"memshare"]', '"ksmtuned", "memshare"]'))
    for path in ("plugin/libmemshare-qemu.so", "broker/memshared", "ksmtuned"):
        file = tmp_path / "qemu-plugin" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.name != lacking:
            file.touch()
    monkeypatch.setenv("MEMSHARE_BUILD", str(tmp_path))
    monkeypatch.setattr(ksm, "KSMTUNED", tmp_path / "qemu-plugin" / "ksmtuned")
    monkeypatch.setattr(runner, "images_of", lambda _plan: pytest.fail("went on"))
    arguments = [str(plan_file), "--output", str(tmp_path / "e")]
    done = CliRunner().invoke(bench_run.command, arguments)
    assert isinstance(done.exception, MemshareError)
    assert f"{lacking}: not there" in str(done.exception)
    assert not (tmp_path / "e").exists()


def test_a_folder_is_used_for_one_experiment_only(tmp_path: Path, plan_file: Path) -> None:
    opened(tmp_path, plan_file)
    with pytest.raises(UsageError, match="holds an experiment already") as caught:
        opened(tmp_path, plan_file)
    assert "--resume" in (caught.value.hint or "")
    other = tmp_path / "other.toml"
    other.write_text(PLAN.replace("seconds = 5", "seconds = 6"))
    with pytest.raises(UsageError, match="another plan than"):
        opened(tmp_path, other, resume=True)
    with pytest.raises(UsageError, match=r"made with kernel 6\.18, this is 6\.19"):
        opened(tmp_path, plan_file, resume=True, kernel="6.19")
    for name, value in (
        ("cpus", 1),
        ("thp", "always"),
        ("plugin_sha256", "b"),
        ("broker_sha256", ""),
    ):
        with pytest.raises(UsageError, match=f"made with {name} "):
            opened(tmp_path, plan_file, resume=True, **{name: value})
    with pytest.raises(UsageError, match=r"made with images .*'aa'.*, this is .*'bb'"):
        opened(tmp_path, plan_file, resume=True, images=images_of("bb"))
    opened(tmp_path, plan_file, resume=True, images=images_of("aa", build_seconds=9))
    # Words and spaces of a plan may change; what it says may not.
    plan_file.write_text(f"# the same\n{PLAN}")
    opened(tmp_path, plan_file, resume=True)


def test_plugin_and_broker_are_told_by_their_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run_program", lambda *_: "QEMU\n")
    facts = []
    for contents in (None, b"one", b"two"):
        for file in ("plugin/libmemshare-qemu.so", "broker/memshared") if contents else ():
            path = tmp_path / "qemu-plugin" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents or b"")
        facts.append(runner.host_facts([], tmp_path))
    for name in ("plugin_sha256", "broker_sha256"):
        none, one, two = (fact[name] for fact in facts)
        assert none is None and one == hashlib.sha256(b"one").hexdigest() != two


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, plan_file: Path) -> None:
    folder = tmp_path / "e"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    with pytest.raises(UsageError, match="not an experiment"):
        opened(tmp_path, plan_file, resume=True)
    assert [path.name for path in folder.iterdir()] == ["letter"]


def test_what_is_written_is_what_is_read(tmp_path: Path, plan_file: Path) -> None:
    opened(tmp_path, plan_file)
    assert read_file(tmp_path / "e" / "experiment.json", Experiment).host == HOST
    reading = GuestReading(
        seconds=2.5,
        guest="guest0",
        phase="idle",
        load="web",
        interval_seconds=2.0,
        operations=10,
        latency_us={"128": 9, "144": 1},
        longest_stall_us=None,
        integrity="ok",
    )
    for line in (SAMPLE, reading, ORACLE):
        path = tmp_path / f"{type(line).__name__}.jsonl"
        lines = Lines(path)
        lines.append(line)
        lines.append(line)
        assert read_lines(path, type(line)) == [line, line], "each line is there at once"
        lines.close()
    step = Step(guests=1, seconds=1.0, ram_given_bytes=1, used_bytes=1, touched_fraction=0.9)
    result = result_of(0, EngineKind.KSM_FULL, steps=(step,), ended="budget")
    write_file(tmp_path / "result.json", result)
    assert read_file(tmp_path / "result.json", RunResult) == result


def test_a_line_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(msgspec.json.encode(SAMPLE) + b'\n{"seconds": 2')
    with pytest.raises(UsageError, match=r"samples\.jsonl:2: "):
        read_lines(path, Sample)


def test_the_summary_tells_of_the_last_second_and_of_the_last_rung(tmp_path: Path) -> None:
    place = RunFolder(tmp_path, 0, EngineKind.OFF)
    result = asyncio.run(fake_run(0, EngineKind.OFF, place))
    (row,) = summary.rows(tmp_path, [result])
    assert (row["run"], row["used"], row["ratio"], row["oracle"]) == (
        "00-off",
        100,
        "4.00x",
        "90.0%",
    )
    steps = [
        Step(guests=n, seconds=n, ram_given_bytes=100 * n, used_bytes=40, touched_fraction=0.9)
        for n in (1, 2)
    ]
    (row,) = summary.rows(tmp_path, [msgspec.structs.replace(result, steps=tuple(steps))])
    assert (row["guests"], row["ratio"]) == (2, "5.00x")
