# SPDX-License-Identifier: GPL-2.0-or-later
"""The second engine at work: the kernel's KSM, for guests without the plugin. policy/ksm.py has the law.

What the knobs were before is put back at the end, also by the daemon that comes after one that was killed. Whatever
goes wrong stops ksmd: without sight of whom it scans it must not scan.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from memshare.clients import ksm, procfs
from memshare.clients.ksm_marks import Marks
from memshare.config import Config
from memshare.daemon.inventory import Inventory
from memshare.daemon.view import View
from memshare.errors import HostError
from memshare.model import WITHOUT_PLUGIN, Domain, KsmStats, KsmView, Mode
from memshare.policy.ksm import KsmLook, KsmState, Marked, Steering, steer
from memshare.policy.pressure import Pressure

log = structlog.get_logger()

FILE = "ksm.json"
STEP_SECONDS = 1.0


class _Kept(msgspec.Struct, frozen=True):
    """What is on disk: the knobs as they were, and those that are ours."""

    before: dict[str, str]
    written: dict[str, str]


class KsmTuner:
    """Steers KSM, one step a look. It has KSM for itself from its first step on until `close`."""

    def __init__(self, config: Config) -> None:
        """Nothing is touched yet."""
        self.view: KsmView | None = None
        self._config = config.ksm
        self._default_group = config.group
        self._file = Path(config.state_dir) / FILE
        self._marks = Marks()
        self._state = KsmState()
        self._before: dict[str, str] = {}
        self._ksmd = 0
        self._lock = ExitStack()
        self._turn = threading.Lock()
        self._is_closed = False

    async def step(self, guests: Iterable[tuple[Domain, int]], pressure: Pressure) -> KsmView:
        """Look and steer. guests are all that run on this host, with the process of each. Raises nothing.

        A batch of ksmd may hold a knob up, so that this happens in a thread.
        """
        return await asyncio.to_thread(self._step, list(guests), pressure)

    async def run(self, inventory: Inventory, look: Callable[[], View | None]) -> NoReturn:
        """Steer once a second, by the pressure of the last look, until cancelled. view is what came of it."""
        while True:
            if (last := look()) is not None:
                watchers = inventory.watchers.values()
                guests = [(one.domain, one.found.pid) for one in watchers if one.found.pid]
                view = await self.step(guests, last.decision.pressure)
                if self.view is None or (view.phase, view.knobs) != (
                    self.view.phase,
                    self.view.knobs,
                ):
                    log.info("ksm_steered", phase=view.phase, reason=view.reason)
                self.view = view
            await asyncio.sleep(STEP_SECONDS)

    async def close(self) -> None:
        """Put the knobs back, unless they are somebody else's by now. What is merged stays merged.

        A step that is still in its thread changes nothing any more.
        """
        await asyncio.to_thread(self._close)

    async def clean_up(self) -> None:
        """Put the knobs back that a daemon which was killed has left, where KSM is not to be steered. Raises nothing."""
        if not self._file.exists():
            return
        try:
            await asyncio.to_thread(self._begin)
            await self.close()
        except (HostError, OSError) as error:
            log.error("ksm_not_put_back", file=str(self._file), reason=str(error))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep `close` waiting; raises HostError once the knobs were put back."""
        with self._turn:
            if self._is_closed:
                raise HostError("KSM is not steered any more")
            yield

    def _step(self, guests: list[tuple[Domain, int]], pressure: Pressure) -> KsmView:
        try:
            with self._changing():
                self._begin()
            look = self._look(guests)
            steering = steer(look, self._state, pressure, self._config)
            with self._changing():
                self._carry_out(steering, look.knobs)
        except (HostError, OSError) as error:
            why = str(error)
            try:
                with self._changing():
                    self._halt()
            except (HostError, OSError) as worse:
                why = f"{why}; ksmd cannot be stopped: {worse}"
            return KsmView(phase="unavailable", reason=why)
        return KsmView(
            phase=steering.phase,
            reason=steering.reason,
            counters=look.counters,
            ksmd_cpu_ns=look.ksmd_cpu_ns,
            knobs={**look.knobs, **steering.knobs},
            guests=self._stats(look),
        )

    def _begin(self) -> None:
        """Have KSM for ourselves, and take over what a daemon that was killed has left."""
        if self._ksmd:
            return
        with ExitStack() as lock:
            lock.enter_context(ksm.locked())
            ksmd = ksm.ksmd_pid()
            knobs = ksm.read_knobs()
            try:
                kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
            except (FileNotFoundError, msgspec.DecodeError):
                kept = _Kept({}, {})
            if all(knobs.get(name) == value for name, value in kept.written.items()):
                self._before = kept.before
                self._state = KsmState(written=kept.written)
            self._lock = lock.pop_all()
            self._ksmd = ksmd

    def _look(self, guests: list[tuple[Domain, int]]) -> KsmLook:
        domains = {pid: domain for domain, pid in guests}
        self._marks.look(domains.keys())
        return KsmLook(
            taken_ns=time.monotonic_ns(),
            knobs=ksm.read_knobs(),
            counters=ksm.read_counters(),
            ksmd_cpu_ns=procfs.cpu_ns(self._ksmd),
            default_group=self._default_group,
            marked=tuple(
                self._marked(pid, name, domains.get(pid))
                for pid, name in sorted(self._marks.marked.items())
            ),
            tuner=self._marks.tuner,
        )

    def _marked(self, pid: int, name: str, domain: Domain | None) -> Marked:
        """Say whose process that is, and in which group."""
        process = f"{pid} ({name})"
        if domain is None:
            return Marked(pid=pid, process=process)
        if domain.stats is not None:
            group: str | None = domain.stats.group
        elif domain.uuid:
            group = domain.owner_group
        else:  # on a bare socket only the plugin knows
            group = self._default_group if domain.problem == WITHOUT_PLUGIN else None
        mode = domain.option.mode if domain.option else Mode.CONTENT
        return Marked(pid=pid, process=process, domain=domain.name, group=group, mode=mode)

    @staticmethod
    def _stats(look: KsmLook) -> Mapping[str, KsmStats]:
        stats = {marked.domain: ksm.read_stat(marked.pid) for marked in look.marked}
        return {domain: figures for domain, figures in stats.items() if domain and figures}

    def _carry_out(self, steering: Steering, knobs: Mapping[str, str]) -> None:
        if steering.state.written != self._state.written:
            # The advisor sets pages_to_scan by itself.
            for name in (*steering.state.written, "pages_to_scan"):
                self._before.setdefault(name, knobs[name])
            self._keep(steering.state.written)
            try:
                ksm.write_knobs(steering.knobs)
            except OSError as error:
                # Some were set, and are ours.
                now = ksm.read_knobs()
                ours = {name: now[name] for name in steering.state.written}
                self._state = msgspec.structs.replace(steering.state, written=ours)
                self._keep(ours)
                raise HostError(f"{error.filename or ksm.KSM}: {error.strerror}") from error
        self._state = steering.state

    def _keep(self, written: Mapping[str, str]) -> None:
        """Write down what is needed to put the knobs back, before they are changed."""
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(_Kept(self._before, dict(written))))
        new.replace(self._file)

    def _are_ours(self) -> bool:
        written = self._state.written
        if self._state.handed_over or not written:
            return False
        knobs = ksm.read_knobs()
        return all(knobs.get(name) == value for name, value in written.items())

    def _halt(self) -> None:
        """Stop ksmd, if it was us who had it run."""
        if self._state.written.get("run") == ksm.RUN_MERGE and self._are_ours():
            ksm.write_knobs({"run": ksm.RUN_STOP})
            written = {**self._state.written, "run": ksm.RUN_STOP}
            self._state = msgspec.structs.replace(self._state, written=written)

    def _close(self) -> None:
        with self._turn, self._lock:
            self._is_closed = True
            if self._are_ours():
                before = dict(self._before)
                if before["run"] == ksm.RUN_UNMERGE:
                    before["run"] = ksm.RUN_STOP  # to un-merge all at once is nobody's wish today
                ksm.write_knobs(before)
            if self._ksmd:
                self._file.unlink(missing_ok=True)
            self._ksmd = 0
