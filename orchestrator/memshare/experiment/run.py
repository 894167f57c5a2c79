# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a plan: the guests, one engine, and all that happens written down.

Its end is a RunResult. What goes wrong in between is an error and leaves none, but for a guest that the kernel kills
because the budget is used up: that is what the run has shown.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memshare.bench.cgroup import limited
from memshare.bench.machine import GUEST_UID, Boot
from memshare.bench.progress import Progress
from memshare.bench.rig import many_mappings
from memshare.cli import first_of
from memshare.clients import procfs
from memshare.errors import MemshareError
from memshare.experiment import engines, guest
from memshare.experiment.engine import Engine, Lab
from memshare.experiment.guest import Guest
from memshare.experiment.image import Image
from memshare.experiment.ladder import FINISHED, Climb
from memshare.experiment.leavings import noted
from memshare.experiment.plan import LADDER, EngineKind, Load, Plan, parse_size
from memshare.experiment.record import Lines, RunFolder, RunResult, Step
from memshare.experiment.sampler import Sampler
from memshare.experiment.stage import Stage
from memshare.experiment.watch import OutOfMemoryError, Watch

#: How long guests do nothing else than verify at the end; a pass of theirs takes a few seconds.
VERIFY_SECONDS = 6.0
TELL_SECONDS = 2.0
BUSY_SECONDS = 2.0
OOM_SCORE_MIN, OOM_SCORE_MAX = 200, 1000


class Run:
    """One engine's turn."""

    def __init__(
        self,
        plan: Plan,
        repeat: int,
        kind: EngineKind,
        images: Sequence[Image],
        build: Path,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        """Know what to do; guests have the images in turn."""
        self._plan = plan
        self._repeat = repeat
        self._kind = kind
        self._images = images
        self._build = build
        self._folder = folder
        self._progress = progress
        self._last_boot_seconds = 0.0
        self._phases: dict[str, tuple[float, float]] = {}
        self._steps: Sequence[Step] = ()
        self._lab: Lab
        self._engine: Engine
        self._stage: Stage
        self._watch: Watch
        self._sampler: Sampler

    async def make(self) -> RunResult:
        """Do it, and write down all but the result."""
        busy_before_ratio = await busy_ratio()
        started, began = datetime.now(UTC), time.monotonic()
        self._folder.path.mkdir(parents=True)
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(work_folder(self._images, self._folder.path))
            cgroup = stack.enter_context(limited(self._plan.budget_bytes))
            cgroup.forbid_swap()
            stack.enter_context(noted(self._folder.path.parent, folder, cgroup.path))
            stack.enter_context(many_mappings())
            self._lab = Lab(folder, self._build, self._plan, cgroup, [])
            self._tell("starting")
            self._engine = await stack.enter_async_context(engines.make(self._kind, self._lab))
            stack.push_async_callback(self._end_guests)
            if not self._plan.start_phase:
                await self._engine.start()
            self._stage = Stage()
            self._watch = Watch(self._lab, self._engine, self._stage, self._folder)
            stack.callback(self._watch.close)
            samples = Lines(self._folder.samples)
            stack.callback(samples.close)
            self._sampler = Sampler(self._lab, self._engine, self._stage, samples)
            ended = await self._observed(self._climb() if self._plan.ladder else self._go())
            await self._verify()
            self._tell("ending guests")
        return RunResult(
            repeat=self._repeat,
            engine=self._kind,
            started_utc=started.isoformat(timespec="seconds"),
            wall_seconds=round(time.monotonic() - began, 3),
            last_boot_seconds=round(self._last_boot_seconds, 3),
            phases=self._phases,
            integrity=self._watch.integrity,
            ended=ended,
            steps=tuple(self._steps),
            longest_oracle_stop_seconds=round(self._watch.longest_stop_seconds, 3),
            busy_before_ratio=busy_before_ratio,
        )

    async def _observed(self, work: Coroutine[Any, Any, str]) -> str:
        """Do it while everything is observed; how it ended."""
        ended = ""
        try:
            async with asyncio.TaskGroup() as group:
                observers = [
                    group.create_task(one)
                    for one in (
                        self._sampler.run(),
                        self._watch.reports(),
                        self._watch.looks(),
                        self._watch.vigil(),
                        self._keep_telling(),
                    )
                ]
                ended = await group.create_task(work)
                for task in observers:
                    task.cancel()
        except* OutOfMemoryError as errors:
            ended = str(first_of(errors))
        return ended

    async def _go(self) -> str:
        """Boot all guests and go through the phases."""
        await self._boot_all()
        async with asyncio.TaskGroup() as group:
            oracles = group.create_task(self._watch.oracles())
            for phase in self._plan.phase:
                self._stage.phase = phase.name
                began = self._stage.now
                if phase.name == self._plan.start_phase:
                    await self._watch.start(self._engine)
                await self._load(phase.loads)
                await asyncio.sleep(max(0.0, began + phase.seconds - self._stage.now))
                await self._watch.count(with_cost=True)
                self._phases[phase.name] = (round(began, 3), round(self._stage.now, 3))
            oracles.cancel()
        return FINISHED

    async def _climb(self) -> str:
        """Add guests until the budget is used up."""
        assert self._plan.ladder is not None
        self._stage.phase = LADDER
        climb = Climb(self._lab, self._engine, self._stage, self._sampler)
        self._steps = climb.steps

        async def add(index: int) -> Guest:
            new = await self._start(index)
            await self._boot(new)
            return new

        try:
            return await climb.up(self._plan.ladder, add, self._watch.count)
        finally:
            self._phases[LADDER] = (0.0, round(self._stage.now, 3))

    async def _boot_all(self) -> None:
        places = asyncio.Semaphore(self._plan.guests.at_once)

        async def boot(new: Guest) -> None:
            try:
                await self._boot(new)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for index in range(self._plan.guests.count):
                await places.acquire()
                new = await self._start(index)
                new.is_counted = True
                group.create_task(boot(new))
                await asyncio.sleep(self._plan.guests.stagger_seconds)

    async def _start(self, index: int) -> Guest:
        """Start a guest and let it run."""
        image = self._images[index % len(self._images)]
        name = f"guest{index}"
        folder = image_folder(self._lab.folder, image)
        options = (
            f"{image.kernel_options} {self._plan.guests.kernel_options} systemd.hostname={name}"
        )
        new = await guest.start(
            self._lab.folder,
            name,
            self._plan.guests.ram_bytes,
            Boot(
                image.kernel and folder / image.kernel.name,
                image.initrd and folder / image.initrd.name,
                folder / image.disk.name,
                options,
                image.arguments,
                image.tcg_cpu,
            ),
            accel=self._plan.guests.accel,
            mem_merge=self._engine.mem_merge,
            arguments=self._engine.arguments(name),
            enter=lambda: self._enter(index),
        )
        self._lab.guests.append(new)
        await self._watch.begin(new)
        return new

    def _enter(self, index: int) -> None:
        """In a guest's process, before QEMU: when memory is at its end the youngest guest dies, and no broker."""
        self._lab.cgroup.enter()
        score = OOM_SCORE_MIN + (OOM_SCORE_MAX - OOM_SCORE_MIN) * index // self._plan.guests.count
        Path("/proc/self/oom_score_adj").write_text(str(score))

    async def _boot(self, new: Guest) -> None:
        await new.boot(self._plan.slack_seconds)
        self._last_boot_seconds = self._stage.now
        await new.keep_integrity(parse_size(self._plan.guests.integrity_bytes))

    async def _load(self, loads: Sequence[Load]) -> None:
        """Have all guests do something else from now on."""
        await asyncio.gather(
            *(
                one.load(loads[index % len(loads)])
                for index, one in enumerate(self._lab.guests)
                if one.is_running and one.is_up
            )
        )

    async def _verify(self) -> None:
        """Have the guests verify once more, and hear what they found."""
        self._tell("guests verify")
        await self._load([Load.IDLE])
        await asyncio.sleep(VERIFY_SECONDS)
        for one in self._lab.running:
            if one.is_up:
                await self._watch.verdict(one)

    async def _end_guests(self) -> None:
        await asyncio.gather(*(one.end() for one in self._lab.guests))

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            if (sample := self._sampler.last) is not None:
                ratio = sample.ram_given_bytes / max(1, sample.used_bytes)
                self._tell(
                    f"{self._stage.phase}, {sample.guests_up} of {len(self._lab.guests)} guests up, "
                    f"{sample.used_bytes >> 20} MiB used, {ratio:.2f}x"
                )

    def _tell(self, text: str) -> None:
        self._progress.update(f"{self._folder.path.name}: {text}")


async def busy_ratio() -> float:
    """How busy the host's CPUs are now. The load average would still have the run before in it."""
    before = procfs.cpu_ticks()
    await asyncio.sleep(BUSY_SECONDS)
    now = procfs.cpu_ticks()
    return round((now.busy - before.busy) / max(1, now.total - before.total), 3)


def image_folder(folder: Path, image: Image) -> Path:
    """Return where a run's guests find an image."""
    return folder / "images" / image.name


@contextmanager
def work_folder(images: Sequence[Image], keep: Path) -> Iterator[Path]:
    """Have a folder that the guests' user can read, with the images; what was logged there goes to keep/logs."""
    folder = Path(tempfile.mkdtemp(prefix="memshare-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)  # the broker, without capabilities, must reach its sockets
        for name in ("qmp", "own"):
            (folder / name).mkdir()
        for path in (folder, folder / "qmp", folder / "own"):
            os.chown(path, GUEST_UID, GUEST_UID)
        for image in images:
            place = image_folder(folder, image)
            place.mkdir(parents=True, exist_ok=True)
            for file in image.files:
                link_or_copy(file, place / file.name)
        yield folder
    finally:
        (keep / "logs").mkdir(exist_ok=True)
        for pattern in ("*.log", "*.err"):
            for log in folder.glob(pattern):
                if log.stat().st_size:
                    shutil.copyfile(log, keep / "logs" / log.name)
        shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(file: Path, place: Path) -> None:
    """Put a file there, which is read only; a copy where it is on another file system or not for all to read."""
    if place.exists():
        return
    if not file.exists():
        raise MemshareError(f"{file}: not there")
    if file.stat().st_mode & 0o004:
        with suppress(OSError):
            place.hardlink_to(file)
            return
    shutil.copyfile(file, place)
