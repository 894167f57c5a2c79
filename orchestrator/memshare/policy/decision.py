# SPDX-License-Identifier: GPL-2.0-or-later
"""`decide`: one look at the host in, what to do out. Pure: no clock, no I/O, nothing kept but the state.

The same call serves the daemon, the tests and the simulator. The daemon's part is to look, to call, to carry
out and log the actions, and to keep the state for the next call. A state lost costs a minute of learning.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec

from memshare.policy.actions import Action, SetRate, Step
from memshare.policy.config import Config
from memshare.policy.evidence import Evidence, observe
from memshare.policy.guard import Guard, Stake, stake, watch
from memshare.policy.pressure import Pressure, assess
from memshare.policy.rates import STEERABLE, Rate, changes, rates
from memshare.policy.snapshot import Guest, Host, Snapshot

HOST_SECONDS = 1.0
CALM_LOOK_SECONDS = 10.0
HURRY = 0.5  # from this urgency on guests are asked as often as the host
RISE = 0.05  # of the urgency: worth a decision before its time

T = TypeVar("T")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that one decision hands to the next. asked is when and what each guest was told last."""

    pressure: Pressure | None = None
    evidence: Mapping[str, Evidence] = msgspec.field(default_factory=dict)
    asked: Mapping[str, tuple[int, SetRate]] = msgspec.field(default_factory=dict)
    guard: Guard = msgspec.field(default_factory=Guard)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and every figure behind it, for `explain` and the metrics.

    Ask the guests and decide again after look_seconds at the latest; at once when PSI's trigger fires, a guest
    comes or goes, or `glance` says so, which needs a look at the host each HOST_SECONDS.
    """

    actions: tuple[Action, ...]
    rates: Mapping[str, Rate]
    pressure: Pressure
    stake: Stake
    step: Step
    look_seconds: float
    state: State


def decide(snapshot: Snapshot, state: State, config: Config) -> Decision:
    """Return what to do now.

    Of guests that are not in the snapshot all is forgotten but what their balloons have taken: that is for `forget`.
    """
    host = snapshot.host
    evidence = {
        guest.domain: observe(guest, state.evidence.get(guest.domain), config)
        for guest in snapshot.guests
    }
    at_stake = stake(snapshot, evidence, config)
    pressure = assess(snapshot.taken_ns, host, state.pressure, at_stake.reserve_bytes, config)
    wanted = rates(snapshot, evidence, pressure, config)
    in_force = {guest.domain: _in_force(guest, state.asked) for guest in snapshot.guests}
    settings = changes(wanted, in_force, snapshot, evidence, config)
    remedies, guard = watch(snapshot, at_stake, state.guard, config)
    asked = {domain: state.asked[domain] for domain in evidence if domain in state.asked}
    asked |= {setting.domain: (snapshot.taken_ns, setting) for setting in settings}
    is_calm = pressure.urgency < HURRY and guard.step is Step.CALM
    return Decision(
        actions=(*remedies, *settings),
        rates={rate.domain: rate for rate in wanted},
        pressure=pressure,
        stake=at_stake,
        step=guard.step,
        look_seconds=CALM_LOOK_SECONDS if is_calm else HOST_SECONDS,
        state=State(pressure=pressure, evidence=evidence, asked=asked, guard=guard),
    )


def forget(state: State, domains: Collection[str]) -> State:
    """Return what is left to know when these guests have ended: one that starts by such a name is another one."""

    def rest(of: Mapping[str, T]) -> dict[str, T]:
        return {domain: value for domain, value in of.items() if domain not in domains}

    guard = msgspec.structs.replace(
        state.guard, ballooned=rest(state.guard.ballooned), asked=rest(state.guard.asked)
    )
    return msgspec.structs.replace(
        state, evidence=rest(state.evidence), asked=rest(state.asked), guard=guard
    )


def glance(
    taken_ns: int, host: Host, state: State, decided: Decision, config: Config
) -> tuple[bool, State]:
    """Tell, by a look at the host alone, whether what was decided is too slow by now; and what to remember.

    Cheap, whatever the number of guests. It keeps the promise of full speed within two seconds on a calm
    host, whose guests are asked every ten. What it remembers is the pressure of now: the stall of one second weighed
    over the ten since the decision would be none.
    """
    now = assess(taken_ns, host, state.pressure, decided.stake.reserve_bytes, config)
    is_rising = now.urgency > decided.pressure.urgency + RISE or (
        host.headroom_bytes < decided.stake.reserve_bytes and decided.step is Step.CALM
    )
    return is_rising, msgspec.structs.replace(state, pressure=now)


def explain(domain: str, snapshot: Snapshot, decision: Decision) -> str:
    """Return why a guest has the rate that it has: one sentence. KeyError when there is no such guest."""
    if domain in decision.rates:
        return decision.rates[domain].reason
    guest = {guest.domain: guest for guest in snapshot.guests}[domain]
    assert guest.stats.state not in STEERABLE
    return f"no rate is set: its state is {guest.stats.state}" + (
        f", {guest.stats.refusal}" if guest.stats.refusal else ""
    )


def _in_force(guest: Guest, asked: Mapping[str, tuple[int, SetRate]]) -> tuple[int, int]:
    """Rate and CPU limit by the guest's own word; by what it was told, if it has not answered since."""
    if guest.domain in asked:
        when_ns, setting = asked[guest.domain]
        if guest.taken_ns <= when_ns:
            return setting.scan_rate_pages, setting.cpu_limit_percent
    return guest.stats.scan_rate_pages, guest.stats.cpu_limit_percent
