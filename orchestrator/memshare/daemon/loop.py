# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop: look at host and guests, have the policy decide, carry it out. It alone steers.

Nothing in it waits for a guest longer than ANSWER_SECONDS: who is late is judged by its last figures.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import structlog

from memshare.clients import ksm
from memshare.clients.holds import Hold, Holds, Verb, read_holds
from memshare.clients.host import read_host
from memshare.config import Config
from memshare.daemon.admission import Admission
from memshare.daemon.hook import run_hook
from memshare.daemon.inventory import Inventory
from memshare.daemon.ksm import KsmTuner
from memshare.daemon.state import State, save
from memshare.daemon.view import View
from memshare.daemon.watcher import Watcher
from memshare.errors import HostError
from memshare.model import Mode, Option
from memshare.policy import (
    Balloon,
    ChangeStep,
    Decision,
    Guest,
    Host,
    RunHook,
    SetRate,
    Snapshot,
    Step,
    decide,
    forget,
    glance,
)
from memshare.policy.decision import HOST_SECONDS
from memshare.policy.snapshot import PAGE_BYTES

log = structlog.get_logger()

ANSWER_SECONDS = 0.5
FIRST_SECONDS = 10.0  # for the sources, before the first decision
BETWEEN_SECONDS = 0.2  # two looks, however many events there are


class Loop:
    """Decides again and again. view is of the last look; None before the first."""

    def __init__(
        self,
        config: Config,
        inventory: Inventory,
        admission: Admission | None,
        tuner: KsmTuner | None,
        state: State,
        on_look: Callable[[], None],
    ) -> None:
        """state is kept by the caller, for the next loop to go on with. on_look is called after each."""
        self.view: View | None = None
        self._config = config
        self._cgroup = Path(config.cgroup) if config.cgroup else None
        self._state_dir = Path(config.state_dir)
        self._inventory = inventory
        self._admission = admission
        self._tuner = tuner
        self._state = state
        self._on_look = on_look
        self._woken = inventory.listener()
        self._actions: Counter[str] = Counter()
        self._modes: dict[str, tuple[str, Mode | None]] = {}
        self._hook: asyncio.Task[None] | None = None
        self._last_host: Host | None = None
        self._host_problem = ""
        self._cgroup_problem = ""

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    async def run(self) -> None:
        """Decide and carry out, until cancelled."""
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await self._inventory.ready.wait()
        except TimeoutError:
            log.warning("sources_slow", reason=f"not all answered in {FIRST_SECONDS:.0f} s")
        async with asyncio.TaskGroup() as group:
            while True:
                holds = read_holds(self._state_dir)
                decision = await self._decide(holds, group)
                self._on_look()
                await self._rest(decision, holds)

    async def _decide(self, holds: Holds, group: asyncio.TaskGroup) -> Decision:
        self._woken.clear()
        watchers = self._inventory.watchers
        await self._ask(watchers)
        for name, watcher in watchers.items():
            self._keep_mode(watcher, holds.of(name))
        self._forget_ended()
        snapshot = self._snapshot(self._host(), holds)
        decision = decide(snapshot, self._state.policy, self._config.policy)
        self._state.policy = decision.state
        # Before anything is taken: whoever comes after a daemon that died has to know of it.
        save(self._state_dir, self._state)
        self._carry_out(decision, group)
        self.view = View(
            taken_seconds=time.time(),
            domains=tuple(watcher.domain for watcher in watchers.values()),
            snapshot=snapshot,
            decision=decision,
            broker=self._admission.broker if self._admission else None,
            ksm=self._tuner.view if self._tuner else None,
            sources=self._inventory.sources,
            actions=dict(self._actions),
        )
        return decision

    async def _ask(self, watchers: dict[str, Watcher]) -> None:
        """Have all guests asked, and wait for those that answer soon."""
        guard = self._state.policy.guard
        may_inflate = self._config.guard.balloon and guard.step > Step.CALM
        wants_balloon = may_inflate or bool(guard.ballooned)
        now = list(watchers.values())
        for watcher in now:
            watcher.wants_balloon = wants_balloon
            if not wants_balloon:
                watcher.balloon_bytes = None
            watcher.ask()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                for watcher in now:
                    await watcher.answered()
        except TimeoutError:
            pass

    def _host(self) -> Host:
        """Look at the host. While that cannot be done, for lack of descriptors, it is taken to be as it was."""
        try:
            self._last_host = self._read_host()
        except OSError as error:
            if self._last_host is None:
                raise
            if not self._host_problem:
                log.error("host_not_read", reason=str(error))
            self._host_problem = str(error)
        else:
            if self._host_problem:
                log.info("host_read_again")
            self._host_problem = ""
        return self._last_host

    def _read_host(self) -> Host:
        """Look at the host. A cgroup that is not there bounds nobody: a slice goes with the last guest in it."""
        try:
            host = read_host(self._cgroup)
        except HostError as error:
            if not self._cgroup_problem:
                log.warning("cgroup_lost", reason=str(error), hint=error.hint)
            self._cgroup_problem = str(error)
            return read_host()
        if self._cgroup_problem:
            log.info("cgroup_found_again", cgroup=str(self._cgroup))
        self._cgroup_problem = ""
        return host

    def _forget_ended(self) -> None:
        """Have the policy forget guests that have ended, also those whose names others have now.

        Not those that were known before a reload, and whose source is away since then.
        """
        before, unread = self._state.processes, self._inventory.unread
        now = {name: process for name, process in before.items() if process[0] in unread}
        for name, watcher in self._inventory.watchers.items():
            now[name] = (watcher.found.domain.source, watcher.found.process)
        ended = {name for name, process in before.items() if now.get(name) != process}
        if not unread:  # of those who were told of by an earlier daemon
            ended |= self._state.policy.guard.ballooned.keys() - now.keys()
        if ended:
            self._state.policy = forget(self._state.policy, ended)
        self._state.processes = now

    def _snapshot(self, host: Host, holds: Holds) -> Snapshot:
        return Snapshot(
            taken_ns=time.monotonic_ns(),
            host=host,
            guests=tuple(
                Guest(
                    domain=name,
                    taken_ns=watcher.taken_ns,
                    stats=watcher.stats,
                    option=watcher.found.domain.option or Option(),
                    is_held=holds.of(name) is not None,
                    balloon_bytes=watcher.balloon_bytes,
                )
                for name, watcher in self._inventory.watchers.items()
                if watcher.stats is not None
            ),
            # Whoever has ksmd run: a guest with the plugin may have been merged before it had it.
            merged_bytes={
                name: stats.unshare_pages * PAGE_BYTES
                for name, watcher in self._inventory.watchers.items()
                if watcher.found.pid and (stats := ksm.read_stat(watcher.found.pid))
            },
            may_inflate=self._config.guard.balloon,
        )

    def _keep_mode(self, watcher: Watcher, hold: Hold | None) -> None:
        """Have the guest share what its owner wants, or nothing while it is drained.

        Told once for each change of mind: what somebody sets by hand meanwhile stays, and a plugin that allows
        less than is wanted is not told so each second. A guest without an option goes back to what it shared before
        it was drained here; one that `memshare drain` has drained is off already, and `memshare resume` knows more.
        """
        domain, stats = watcher.found.domain, watcher.stats
        if stats is None or stats.state == "refused":
            return
        process, drained = self._state.drained.get(domain.name, ("", None))
        before = drained if process == watcher.found.process else None
        wanted = domain.option.mode if domain.option else before
        if hold is not None and hold.verb is Verb.DRAIN:
            wanted = Mode.OFF
            if before is None and stats.known_mode not in (None, Mode.OFF):
                self._state.drained[domain.name] = (watcher.found.process, stats.known_mode)
        else:
            self._state.drained.pop(domain.name, None)
        told = (watcher.found.process, wanted)
        if self._modes.get(domain.name) == told:
            return
        self._modes[domain.name] = told
        if wanted is not None and stats.mode != wanted:
            log.info("mode_set", domain=domain.name, mode=str(wanted), before=stats.mode)
            watcher.tell("mode", wanted)

    def _carry_out(self, decision: Decision, group: asyncio.TaskGroup) -> None:
        watchers = self._inventory.watchers
        for action in decision.actions:
            self._actions[type(action).__name__] += 1
            match action:
                case SetRate():
                    log.info(
                        "rate_set",
                        domain=action.domain,
                        scan_rate=action.scan_rate_pages,
                        cpu_limit=action.cpu_limit_percent,
                        reason=action.reason,
                    )
                    watchers[action.domain].tell("scan-rate", action.scan_rate_pages)
                    watchers[action.domain].tell("cpu-limit", action.cpu_limit_percent)
                case ChangeStep():
                    log.warning(
                        "guard_stepped", step=action.step.name.lower(), reason=action.reason
                    )
                case Balloon():
                    log.warning(
                        "balloon_set",
                        domain=action.domain,
                        target_bytes=action.target_bytes,
                        reason=action.reason,
                    )
                    watchers[action.domain].inflate(action.target_bytes)
                case RunHook():
                    self._run_hook(action, group)

    def _run_hook(self, action: RunHook, group: asyncio.TaskGroup) -> None:
        hook = self._config.guard.hook
        if not hook:
            log.error("hook_missing", reason=action.reason, hint="set hook in [guard]")
        elif self._hook is not None and not self._hook.done():
            log.warning("hook_busy", hook=hook, reason=action.reason)
        else:
            log.warning("hook_started", hook=hook, reason=action.reason)
            self._hook = group.create_task(
                run_hook(hook, action, self._config.guard.hook_timeout_seconds)
            )

    async def _rest(self, decision: Decision, holds: Holds) -> None:
        """Wait until it is time to look again, or until something says that it is."""
        end = time.monotonic() + decision.look_seconds
        await asyncio.sleep(BETWEEN_SECONDS)
        while (left := end - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left, HOST_SECONDS)):
                    await self._woken.wait()
                    return
            except TimeoutError:
                pass
            self._on_look()
            is_rising, self._state.policy = glance(
                time.monotonic_ns(), self._host(), self._state.policy, decision, self._config.policy
            )
            if is_rising:
                return
            if read_holds(self._state_dir) != holds:
                return
