# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with simulated guests, and the loop that the daemon has: look, decide, act."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from memshare.policy import (
    Action,
    Balloon,
    Config,
    Decision,
    Host,
    SetRate,
    Snapshot,
    State,
    decide,
    glance,
)
from memshare.policy.decision import HOST_SECONDS
from memshare.policy.snapshot import PAGE_BYTES
from memshare.simulate.guest import SimulatedGuest

BALLOON_PAGES = 65536.0  # a second: how fast a balloon moves
STALL_RATIO = 0.02  # of the memory: with less than that free, tasks wait for it


class Moment(NamedTuple):
    """One turn of the loop. scanned is pages a second since the last, by domain."""

    seconds: float
    snapshot: Snapshot
    decision: Decision
    scanned: dict[str, float]


@dataclass(kw_only=True)
class SimulatedHost:
    """used_bytes is what others than guests use; sharers is how many mappings a page of the store has.

    oom_seconds is when the memory was exceeded first, which a real host does not survive.
    """

    guests: Sequence[SimulatedGuest]
    cpus: float
    total_bytes: int
    used_bytes: float = 0.0
    sharers: float = 2.0
    seconds: float = 0.0
    stalled_ns: float = 0.0
    swapped_in_pages: float = 0.0
    oom_seconds: float | None = None
    asked_pages: dict[str, float] = field(default_factory=dict)

    @property
    def free_bytes(self) -> float:
        """What is left; negative when more is used than there is."""
        pages = sum(guest.private_pages + guest.shared / self.sharers for guest in self.guests)
        return self.total_bytes - self.used_bytes - pages * PAGE_BYTES

    @property
    def now_ns(self) -> int:
        """The host's clock."""
        return int(self.seconds * 1e9)

    def look_at_host(self) -> Host:
        """What a daemon would see of memory now."""
        return Host(
            cpus=self.cpus,
            total_bytes=self.total_bytes,
            available_bytes=max(0, int(self.free_bytes)),
            psi_some_ns=int(self.stalled_ns),
            swapped_in_pages=int(self.swapped_in_pages),
        )

    def look(self) -> Snapshot:
        """What a daemon would see now, its guests asked."""
        return Snapshot(
            taken_ns=self.now_ns,
            host=self.look_at_host(),
            guests=tuple(guest.look(self.now_ns) for guest in self.guests),
        )

    def carry_out(self, actions: Sequence[Action]) -> None:
        """Do what a daemon would do. The hook is the experiment's."""
        by_domain = {guest.domain: guest for guest in self.guests}
        for action in actions:
            if isinstance(action, SetRate):
                by_domain[action.domain].rate_pages = action.scan_rate_pages
                by_domain[action.domain].limit_percent = action.cpu_limit_percent
            elif isinstance(action, Balloon):
                self.asked_pages[action.domain] = action.target_bytes / PAGE_BYTES

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        for guest in self.guests:
            if guest.domain in self.asked_pages:
                lack = self.asked_pages[guest.domain] - guest.ram_left_pages
                most = BALLOON_PAGES * seconds
                guest.balloon_pages = guest.ram_left_pages + max(-most, min(most, lack))
            guest.live(seconds)
            guest.scan(seconds)
        self.seconds += seconds
        free = self.free_bytes
        short = 1 - free / (STALL_RATIO * self.total_bytes)
        self.stalled_ns += max(0.0, min(1.0, short)) * seconds * 1e9
        if free < 0 and self.oom_seconds is None:
            self.oom_seconds = self.seconds


def run(
    host: SimulatedHost,
    seconds: float,
    config: Config,
    state: State | None = None,
    happen: Callable[[SimulatedHost], None] = lambda _: None,
    step_seconds: float = HOST_SECONDS,
) -> Iterator[Moment]:
    """Yield each turn for so many seconds. `happen` is called each step: the experiment's own events.

    The daemon's loop is the same, but for who looks and who acts.
    """
    state = state or State()
    end = host.seconds + seconds
    before_seconds, before = host.seconds, {guest.domain: guest.scanned for guest in host.guests}
    happen(host)
    while host.seconds < end:
        snapshot = host.look()
        decision = decide(snapshot, state, config)
        state = decision.state
        host.carry_out(decision.actions)
        now = {guest.domain: guest.scanned for guest in host.guests}
        elapsed = host.seconds - before_seconds or 1.0
        scanned = {name: (pages - before.get(name, 0.0)) / elapsed for name, pages in now.items()}
        before_seconds, before = host.seconds, now
        yield Moment(host.seconds, snapshot, decision, scanned)
        due = min(end, host.seconds + decision.look_seconds)
        while host.seconds < due:
            host.advance(min(step_seconds, due - host.seconds))
            happen(host)
            is_rising, state = glance(host.now_ns, host.look_at_host(), state, decision, config)
            if is_rising:
                break
