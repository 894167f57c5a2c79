# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard: keeps enough memory free for what sharing has promised twice.

    at stake = (shared + zero pages) * 4 KiB + what the kernel's KSM merged
                                                                per guest, all in use again if it writes
    reserve  = reserve_guests * largest at stake  +  breaks a second * react_seconds
               at most all that is at stake, at least reserve_ratio of the memory

A reboot, an update, a full disk scan makes one guest write to everything it shares, and nobody asks before: the
host must survive that of its largest, while all others go on breaking at the rate of late, for as long as remedies
take. When headroom is below the reserve the guard goes up:

    step        when headroom is below              what happens
    1 scan      the reserve                         urgency is 1 (pressure.py): full speed
    2 balloon   balloon_ratio of the reserve        balloons take what is missing, in proportion to
                                                    what each may take
    3 hook      hook_ratio of the reserve           the operator's script, again each hook_seconds

It goes one step beyond that when step_seconds at it brought no rise of headroom, and to balloons when
headroom will not last react_seconds at the rate at which it is falling. It goes down one step at a time, each after
calm_seconds above 1.25 of the reserve. Below step 2 balloons give back, half of what is beyond that at a time
and calm_seconds apart, because a guest uses what it gets back only later. Each step is told, with its numbers.

ESX has four such steps by free memory (high, soft, hard, low: Waldspurger, OSDI 2002), the kernel's ksm.rst
warns of the danger, and no deployed page sharing reserves for it.
"""

import math
from collections.abc import Mapping

import msgspec

from memshare.policy.actions import Action, Balloon, ChangeStep, RunHook, Step
from memshare.policy.config import Config
from memshare.policy.evidence import Evidence
from memshare.policy.snapshot import Snapshot
from memshare.render import human_bytes

CALM_RATIO = 1.25  # of the reserve


class Stake(msgspec.Struct, frozen=True, kw_only=True):
    """What may come back into use, and what is kept free for it."""

    unshare_bytes: int
    largest_bytes: int
    largest_domain: str
    break_bytes: float  # a second
    reserve_bytes: int


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard remembers. Times are the snapshots'.

    ballooned is the RAM that each guest had before, asked the target that its balloon was last given.
    """

    step: Step = Step.CALM
    since_ns: int = 0
    headroom_bytes: int = 0  # when the step was taken
    calm_since_ns: int | None = None
    hook_ns: int | None = None
    seen_ns: int | None = None
    seen_bytes: int = 0
    ballooned: Mapping[str, int] = msgspec.field(default_factory=dict)
    asked: Mapping[str, int] = msgspec.field(default_factory=dict)


def stake(snapshot: Snapshot, evidence: Mapping[str, Evidence], config: Config) -> Stake:
    """Return what is at stake on a host."""
    unshare = dict(snapshot.merged_bytes)  # by domain
    breaks = 0.0
    for guest in snapshot.guests:
        unshare[guest.domain] = unshare.get(guest.domain, 0) + guest.unshare_bytes
        if guest.domain in evidence:
            breaks += evidence[guest.domain].break_bytes
    total = sum(unshare.values())
    largest, largest_domain = max(
        ((bytes_, domain) for domain, bytes_ in unshare.items() if bytes_), default=(0, "")
    )
    wanted = config.reserve_guests * largest + breaks * config.react_seconds
    capacity_bytes = snapshot.host.capacity_bytes
    return Stake(
        unshare_bytes=total,
        largest_bytes=largest,
        largest_domain=largest_domain,
        break_bytes=breaks,
        reserve_bytes=int(max(config.reserve_ratio * capacity_bytes, min(total, wanted))),
    )


def watch(
    snapshot: Snapshot, at_stake: Stake, before: Guard, config: Config
) -> tuple[list[Action], Guard]:
    """Return what to do now."""
    now_ns = snapshot.taken_ns
    headroom, reserve = snapshot.host.headroom_bytes, at_stake.reserve_bytes
    calm_since_ns = before.calm_since_ns
    if headroom < CALM_RATIO * reserve:
        calm_since_ns = None
    elif calm_since_ns is None:
        calm_since_ns = now_ns
    is_calm = calm_since_ns is not None and now_ns - calm_since_ns >= config.calm_seconds * 1e9
    step, why = _step(now_ns, headroom, reserve, is_calm, before, config)
    guard = msgspec.structs.replace(
        before, calm_since_ns=calm_since_ns, seen_ns=now_ns, seen_bytes=headroom
    )
    actions: list[Action] = []
    if step != before.step:
        actions.append(ChangeStep(step=step, reason=f"{why}; {_numbers(headroom, at_stake)}"))
        guard = msgspec.structs.replace(
            guard, step=step, since_ns=now_ns, headroom_bytes=headroom, calm_since_ns=None
        )
    if not snapshot.may_inflate:
        balloons, guard = _deflate(snapshot, math.inf, "balloons are to be left alone", guard)
        actions += balloons
    elif step >= Step.BALLOON:
        balloons, guard = _inflate(snapshot, reserve - headroom, guard, config)
        actions += balloons
    elif before.ballooned and is_calm and step == before.step:
        spare_bytes = (headroom - CALM_RATIO * reserve) / 2
        balloons, guard = _deflate(snapshot, spare_bytes, "memory is free again", guard)
        guard = msgspec.structs.replace(guard, calm_since_ns=None)
        actions += balloons
    is_due = guard.hook_ns is None or now_ns - guard.hook_ns >= config.hook_seconds * 1e9
    if step is Step.HOOK and headroom < reserve and is_due:
        missing = f"{human_bytes(reserve - headroom)} have to be found"
        actions.append(
            RunHook(
                missing_bytes=reserve - headroom,
                reason=f"{missing}; {_numbers(headroom, at_stake)}",
            )
        )
        guard = msgspec.structs.replace(guard, hook_ns=now_ns)
    return actions, guard


def _step(
    now_ns: int, headroom: int, reserve: int, is_calm: bool, before: Guard, config: Config
) -> tuple[Step, str]:
    """Return the step to be on, and why when it is another one."""
    if headroom >= reserve:
        due, why = Step.CALM, ""
    elif headroom >= config.balloon_ratio * reserve:
        due, why = Step.SCAN, "headroom is below the reserve"
    elif headroom >= config.hook_ratio * reserve:
        due, why = Step.BALLOON, f"headroom is below {config.balloon_ratio:.0%} of the reserve"
    else:
        due, why = Step.HOOK, f"headroom is below {config.hook_ratio:.0%} of the reserve"
    if due is Step.SCAN and before.seen_ns is not None and now_ns > before.seen_ns:
        fall_bytes = (before.seen_bytes - headroom) * 1e9 / (now_ns - before.seen_ns)  # a second
        if headroom < fall_bytes * config.react_seconds:
            due, why = (
                Step.BALLOON,
                f"headroom lasts {headroom / fall_bytes:.0f} s as it is falling",
            )
    is_stuck = (
        Step.CALM < due == before.step < Step.HOOK
        and now_ns - before.since_ns >= config.step_seconds * 1e9
        and headroom <= before.headroom_bytes
    )
    if is_stuck:
        name = before.step.name.lower()
        due, why = Step(before.step + 1), f"{config.step_seconds:.0f} s of {name} brought nothing"
    if due > before.step:
        return due, why
    if is_calm and before.step > Step.CALM:
        return Step(before.step - 1), f"headroom was enough for {config.calm_seconds:.0f} s"
    return before.step, ""


def _inflate(
    snapshot: Snapshot, missing_bytes: int, guard: Guard, config: Config
) -> tuple[list[Action], Guard]:
    """Have balloons take what is missing, in proportion to what each may take."""
    room = {}
    for guest in snapshot.guests:
        if guest.balloon_bytes is not None:
            # An engine that was refused, or has just started, has registered no RAM or not all of it.
            before_bytes = guard.ballooned.get(guest.domain, guest.balloon_bytes)
            ram_bytes = max(guest.stats.ram_bytes, before_bytes)
            kept_bytes = math.ceil(config.balloon_keep_ratio * ram_bytes)
            room[guest.domain] = (guest.balloon_bytes, max(0, guest.balloon_bytes - kept_bytes))
    total_bytes = sum(left for _, left in room.values())
    if missing_bytes <= 0 or not total_bytes:
        return [], guard
    actions: list[Action] = []
    ballooned, asked = dict(guard.ballooned), dict(guard.asked)
    for domain, (now_bytes, left) in room.items():
        taken_bytes = int(left * min(1.0, missing_bytes / total_bytes))
        target_bytes = now_bytes - taken_bytes
        if not taken_bytes or target_bytes >= asked.get(domain, now_bytes):
            continue  # it is on its way there: a balloon takes its time
        ballooned.setdefault(domain, now_bytes)
        asked[domain] = target_bytes
        reason = f"{human_bytes(taken_bytes)} of the {human_bytes(missing_bytes)} that are missing"
        actions.append(Balloon(domain=domain, target_bytes=target_bytes, reason=reason))
    return actions, msgspec.structs.replace(guard, ballooned=ballooned, asked=asked)


def _deflate(
    snapshot: Snapshot, spare_bytes: float, why: str, guard: Guard
) -> tuple[list[Action], Guard]:
    """Give back so much at most, to each in proportion to what was taken from it."""
    taken = {
        guest.domain: (guest.balloon_bytes, guard.ballooned[guest.domain] - guest.balloon_bytes)
        for guest in snapshot.guests
        if guest.balloon_bytes is not None
        and guest.balloon_bytes < guard.ballooned.get(guest.domain, 0)
    }
    # Who has all back is done. Who did not say what its balloon leaves it, or was not found yet, is asked again.
    told = {guest.domain for guest in snapshot.guests if guest.balloon_bytes is not None}
    guard = msgspec.structs.replace(
        guard,
        ballooned={
            domain: before
            for domain, before in guard.ballooned.items()
            if domain in taken or domain not in told
        },
        asked={},
    )
    total_bytes = sum(lacking for _, lacking in taken.values())
    actions: list[Action] = []
    for domain, (now_bytes, lacking) in taken.items():
        given_bytes = int(lacking * min(1.0, spare_bytes / total_bytes))
        reason = f"{why}: {human_bytes(given_bytes)} of what was taken"
        target_bytes = now_bytes + given_bytes
        actions.append(Balloon(domain=domain, target_bytes=target_bytes, reason=reason))
    return actions, guard


def _numbers(headroom: int, at_stake: Stake) -> str:
    return (
        f"{human_bytes(headroom)} left, reserve {human_bytes(at_stake.reserve_bytes)}: "
        f"{human_bytes(at_stake.unshare_bytes)} shared in all, "
        f"{human_bytes(at_stake.largest_bytes)} by {at_stake.largest_domain or 'nobody'}, "
        f"{human_bytes(int(at_stake.break_bytes))} a second breaking"
    )
