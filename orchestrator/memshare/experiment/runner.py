# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes all runs of a plan, each finished one once: what was interrupted goes on where it was."""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memshare.bench.machine import QEMU
from memshare.bench.machine import run as run_program
from memshare.clients import procfs
from memshare.errors import MemshareError, UsageError
from memshare.experiment import plan as plans
from memshare.experiment.image import Image, ensure_all
from memshare.experiment.leavings import take_away
from memshare.experiment.plan import EngineKind, Plan
from memshare.experiment.record import (
    Experiment,
    RunFolder,
    RunResult,
    read_file,
    write_file,
)
from memshare.experiment.sharing import BROKER, PLUGIN

PLAN_FILE, EXPERIMENT_FILE = "plan.toml", "experiment.json"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: What must be as it was for runs of one folder to be compared.
SAME = (
    "kernel",
    "cpu_model",
    "cpus",
    "ram_bytes",
    "thp",
    "qemu",
    "memshare",
    "plugin_sha256",
    "broker_sha256",
    "images",
)

Make = Callable[[int, EngineKind, RunFolder], Awaitable[RunResult]]


def open_folder(folder: Path, plan_file: Path, host: dict[str, Any], *, resume: bool) -> Plan:
    """Make the folder of an experiment, or go on with one; returns its plan.

    UsageError where there is one already, or another than is to be resumed.
    """
    plan = plans.load(plan_file)
    kept, described = folder / PLAN_FILE, folder / EXPERIMENT_FILE
    if not kept.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: not empty, and not an experiment")
        folder.mkdir(parents=True, exist_ok=True)
        write_file(
            described,
            Experiment(
                plan=plan.name,
                command=" ".join(["memshare", *sys.argv[1:]]),
                started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                host=host,
            ),
        )
        # Last: a folder with a plan is an experiment.
        part = kept.with_suffix(".part")
        shutil.copyfile(plan_file, part)
        part.replace(kept)
        return plan
    if not resume:
        raise UsageError(f"{folder}: holds an experiment already", "--resume goes on with it")
    if plans.load(kept) != plan:
        raise UsageError(f"{kept}: another plan than {plan_file}", "choose another folder")
    take_away(folder)
    before = read_file(described, Experiment).host
    for name in SAME:
        then, now = _fact(before, name), _fact(host, name)
        if then != now:
            raise UsageError(
                f"{described}: made with {name} {then}, this is {now}",
                "runs of one experiment must be comparable: choose another folder",
            )
    return plan


def _fact(host: dict[str, Any], name: str) -> Any:
    """A fact; images by their contents, for what is built again of the same packages is the same."""
    if name == "images":
        return {image: facts.get("disk_sha256") for image, facts in host.get(name, {}).items()}
    return host.get(name)


def clear(folder: RunFolder) -> None:
    """Move what an interrupted run has left behind out of the way."""
    if not folder.path.exists():
        return
    number = 1
    while (away := folder.path.with_name(f"{folder.path.name}.unfinished-{number}")).exists():
        number += 1
    folder.path.rename(away)


async def conduct(plan: Plan, folder: Path, make: Make) -> list[RunResult]:
    """Make all runs that are not finished, in the plan's order; the results of all."""
    results = []
    for repeat, engine in plan.runs():
        place = RunFolder(folder, repeat, engine)
        if not place.is_finished:
            clear(place)
            result = await make(repeat, engine, place)
            write_file(place.result, result)
        results.append(read_file(place.result, RunResult))
    return results


def images_of(plan: Plan) -> list[Image]:
    """Return the images that the guests have in turn, built where they are not there yet."""
    images = ensure_all(plan.guests.image)
    for image in images:
        if plan.guests.ram_bytes < image.min_ram_bytes:
            raise UsageError(
                f"guests.ram: image {image.name} needs {image.min_ram_bytes >> 20}M at least"
            )
    return images


def host_facts(images: Sequence[Image], build: Path) -> dict[str, Any]:
    """Return where the figures come from. A version stands for many builds, so plugin and broker are told by their hash."""
    models = [
        line.partition(":")[2].strip()
        for line in (procfs.PROC / "cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "kernel": platform.release(),
        "cpu_model": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "ram_bytes": procfs.meminfo()["MemTotal"],
        "qemu": run_program(QEMU, "--version").splitlines()[0],
        "memshare": version("memshare"),
        "plugin_sha256": _sha256(build / PLUGIN),
        "broker_sha256": _sha256(build / BROKER),
        "thp": HUGE_PAGES.read_text().strip() if HUGE_PAGES.exists() else None,
        "images": {image.name: image.facts for image in images},
    }


def _sha256(file: Path) -> str | None:
    """None where it is not there: a plan may do without."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def build_folder(source: Path) -> Path:
    """Return where broker and plugin were built."""
    build = Path(os.environ.get("MEMSHARE_BUILD", source / "build"))
    if not (build / "qemu-plugin").is_dir():
        raise MemshareError(
            f"{build}: no build of memshare", "run ./dev build, or set MEMSHARE_BUILD"
        )
    return build
