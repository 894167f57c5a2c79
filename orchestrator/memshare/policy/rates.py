# SPDX-License-Identifier: GPL-2.0-or-later
"""The rate law: how many pages a second each guest scans, and why.

    rate    = level * weight * value * RAM      never below min-rate, never above the ceiling
    value   = yield / worth                     between probe_ratio and 1; a new guest's is 1
    ceiling = RAM / pass_seconds * min(1, value / (1 - urgency))
              at least RAM / probe_seconds, at most max-rate
    level   : as high as  sum(rate * cost of a page) <= budget  allows
    budget  = CPUs * budget_cpu_ratio * (calm_ratio + (1 - calm_ratio) * urgency)
              at least new_ratio of the whole while some guest is new

In words. Scanning buys memory with CPU, so there is one budget of CPU for the host, small while memory is
plenty, whole when it is short (pressure.py says how urgent that is). What is divided is how often each guest's
RAM is visited: twice the value, twice as often; the size of a guest makes no difference to how soon it is
through. The value is what scanning that guest was seen to keep per CPU second (evidence.py), against
worth_bytes, from which it deserves full speed.

- A *new* guest has value 1 until it has been through its first passes, and they are paid for: most of what
  a guest shares is there soon after it has started, and finding it is a cost that comes once.
- A *barren* guest falls to a claim of probe_ratio, never to nothing, so that it is found when it turns fertile: its
  value then grows with each visit and its visits with its value. While CPU is left it is visited each
  probe_seconds: passing by what nobody wrote to costs next to nothing.
  One whose memory has visibly changed is new again.
- A guest that *has merged everything* is barren for now and costs as little. So the total falls by itself as
  a host converges, without anybody deciding that it has: the ceiling falls with the value. Urgency
  lifts ceilings, the fertile guests' first. At full urgency everyone may go as fast as makes sense, and the
  budget is the only bound: CPU is cheap when the alternative is swap.
- A floor is a promise of the operator's: kept even where the budget of the moment is smaller. Only floors
  that exceed the *whole* budget together are cut, all by the same factor, and every guest's reason says so.
- No guest is ever at 0 pages: it would never be seen to turn. Except where its owner says max-rate 0.

Where the ideas come from: a rate per VM and scanning by leftover CPU is ESX (Waldspurger, OSDI 2002, with
its global ShareScanGHz); a low-memory threshold that turns the speed up is ksmtuned; a CPU limit on
the scanner is the advisor of Linux's KSM (6.8), which aims at a time per pass instead, whatever passes
bring; a yield per region is UKSM's. The proportional share with bounds is water-filling (split.py).

Why it does not oscillate: values depend on what was scanned, not on rates; evidence fades over half a pass or a
minute, which is slower than rates are set; urgency falls slowly; and a rate within still_ratio of the one
in force is left alone.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from memshare.policy.actions import SetRate
from memshare.policy.config import Config
from memshare.policy.evidence import Evidence
from memshare.policy.pressure import Pressure
from memshare.policy.snapshot import Guest, Snapshot
from memshare.policy.split import Claim, level, part
from memshare.render import human_bytes

STEERABLE = frozenset({"starting", "running", "paused", "waiting-for-broker"})
LIMIT_SLACK = 2.0  # a guest's CPU limit, by its planned share: room for a cost that has just risen


class Bound(StrEnum):
    """Which part of the law decided."""

    BUDGET = "budget"
    VALUE = "value"
    PASS = "pass"
    FLOOR = "floor"
    CUT = "cut"
    CEILING = "ceiling"
    HELD = "held"


class Rate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One guest's rate and everything that made it. cpu_ratio is of one core, as planned."""

    domain: str
    pages: int
    cpu_ratio: float
    bound: Bound
    is_new: bool
    value: float
    yield_bytes: float
    pass_seconds: float  # at this rate; infinite when it is 0
    budget_cpus: float
    pressure: Pressure

    @property
    def cpu_limit_percent(self) -> int:
        """What the engine is held to, should a page cost more than it did. 1 is the least there is."""
        return min(100, max(1, math.ceil(100 * self.cpu_ratio * LIMIT_SLACK)))

    @property
    def reason(self) -> str:
        """The sentence that `memshare explain` prints."""
        if self.bound is Bound.HELD:
            return "0 pages/s: paused by the operator"
        often = f"a pass in {self.pass_seconds:.0f} s" if self.pages else "no passes"
        if self.is_new:
            merit = "new, or changed as a whole, so it counts as fertile until it was visited twice"
        else:
            merit = (
                f"it keeps {human_bytes(int(self.yield_bytes))} per CPU second, "
                f"{self.value:.0%} of what is worth full speed"
            )
        hurry = f"urgency {self.pressure.urgency:.2f}"
        bound = {
            Bound.BUDGET: f"its part of {self.budget_cpus:.3f} CPUs at {hurry}",
            Bound.VALUE: f"as often as that is worth at {hurry}",
            Bound.PASS: "more often would find nothing more",
            Bound.FLOOR: "held up to its min-rate",
            Bound.CUT: "cut: all min-rates together exceed the whole CPU budget",
            Bound.CEILING: "held down to its max-rate",
        }[self.bound]
        return f"{self.pages} pages/s, {often}: {merit}; {bound} ({self.pressure.cause})"


def budget_cpus(cpus: float, urgency: float, any_new: bool, config: Config) -> float:
    """CPUs (CPU seconds a second) that scanning may take at an urgency."""
    ratio = config.calm_ratio + (1 - config.calm_ratio) * urgency
    if any_new:
        ratio = max(ratio, config.new_ratio)
    return cpus * config.budget_cpu_ratio * ratio


def rates(
    snapshot: Snapshot, evidence: Mapping[str, Evidence], pressure: Pressure, config: Config
) -> list[Rate]:
    """Return the rate of each guest that can be steered, in order of the snapshot."""
    guests = [guest for guest in snapshot.guests if guest.stats.state in STEERABLE]
    any_new = any(
        not evidence[guest.domain].is_proven
        for guest in guests
        if not guest.is_held and guest.option.max_rate != 0  # nothing will ever be proven of these
    )
    budget = budget_cpus(snapshot.host.cpus, pressure.urgency, any_new, config)
    whole_budget = budget_cpus(snapshot.host.cpus, 1.0, any_new, config)
    values = [_value(guest, evidence[guest.domain], config) for guest in guests]
    bounds = [
        _bounds_pages(guest, value, pressure.urgency, config)
        for guest, value in zip(guests, values, strict=True)
    ]
    costs = [evidence[guest.domain].page_cost_ns / 1e9 for guest in guests]  # seconds
    floors_cpus = sum(cost * floor for cost, (floor, _) in zip(costs, bounds, strict=True))
    cut = min(1.0, whole_budget / floors_cpus) if floors_cpus else 1.0
    claims = [
        Claim(
            max(cost * guest.option.weight * value * guest.ram_pages, 1e-12),
            cost * floor * cut,
            cost * (ceiling if cut == 1.0 else floor * cut),
        )
        for guest, value, cost, (floor, ceiling) in zip(guests, values, costs, bounds, strict=True)
    ]
    at = level(budget, claims)
    result = []
    for guest, value, cost, claim, bound in zip(guests, values, costs, claims, bounds, strict=True):
        pages = int(part(claim, at) / cost + 1e-6)
        result.append(
            Rate(
                domain=guest.domain,
                pages=pages,
                cpu_ratio=pages * cost,
                bound=_which(
                    guest, pages, bound, cut < 1.0, value / max(1.0 - pressure.urgency, value)
                ),
                is_new=not evidence[guest.domain].is_proven,
                value=value,
                yield_bytes=evidence[guest.domain].yield_bytes,
                pass_seconds=guest.ram_pages / pages if pages else math.inf,
                budget_cpus=budget,
                pressure=pressure,
            )
        )
    return result


def changes(
    wanted: Sequence[Rate],
    in_force: Mapping[str, tuple[int, int]],
    snapshot: Snapshot,
    evidence: Mapping[str, Evidence],
    config: Config,
) -> list[SetRate]:
    """Return what to set: rates that are far enough from those in force (pages, CPU limit).

    Leaving small differences alone may leave the sum above the budget; then all that are above their rate
    are set, however near.
    """
    guests = {guest.domain: guest for guest in snapshot.guests}
    stays = {
        rate.domain: _may_stay(rate, *in_force[rate.domain], guests[rate.domain], config)
        for rate in wanted
    }
    planned_cpus = sum(rate.cpu_ratio for rate in wanted)
    kept_cpus = sum(
        in_force[rate.domain][0] * evidence[rate.domain].page_cost_ns / 1e9
        if stays[rate.domain]
        else rate.cpu_ratio
        for rate in wanted
    )
    is_over = bool(wanted) and kept_cpus > max(planned_cpus, wanted[0].budget_cpus)
    return [
        SetRate(
            domain=rate.domain,
            scan_rate_pages=rate.pages,
            cpu_limit_percent=rate.cpu_limit_percent,
            reason=rate.reason,
        )
        for rate in wanted
        if not stays[rate.domain] or (is_over and in_force[rate.domain][0] > rate.pages)
    ]


def _value(guest: Guest, known: Evidence, config: Config) -> float:
    if not known.is_proven:
        return 1.0
    return min(1.0, max(config.probe_ratio, known.yield_bytes / config.worth_bytes))


def _bounds_pages(
    guest: Guest, value: float, urgency: float, config: Config
) -> tuple[float, float]:
    """Floor and ceiling, pages a second. The owner's bounds win over what would be worth it."""
    if guest.is_held:
        return 0.0, 0.0
    most = math.inf if guest.option.max_rate is None else guest.option.max_rate
    floor = min(max(1, guest.option.min_rate), most)
    worth_ratio = value / max(1.0 - urgency, value)
    often = max(worth_ratio / config.pass_seconds, 1 / config.probe_seconds)  # passes a second
    return floor, max(floor, min(guest.ram_pages * often, most))


def _which(
    guest: Guest, pages: int, bounds: tuple[float, float], is_cut: bool, urged: float
) -> Bound:
    """Which bound a rate is at. urged is the part of the fastest pass that value and urgency allow."""
    floor, ceiling = bounds
    if guest.is_held:
        return Bound.HELD
    if is_cut:
        return Bound.CUT
    if pages >= int(ceiling):
        if ceiling == guest.option.max_rate:
            return Bound.CEILING
        if ceiling > floor:
            return Bound.PASS if urged >= 1.0 else Bound.VALUE
    return Bound.FLOOR if pages <= floor and guest.option.min_rate else Bound.BUDGET


def _may_stay(rate: Rate, pages: int, limit_percent: int, guest: Guest, config: Config) -> bool:
    if not rate.cpu_limit_percent <= limit_percent <= 3 * rate.cpu_limit_percent:
        return False
    if abs(pages - rate.pages) > config.still_ratio * rate.pages:
        return False
    if rate.bound in (Bound.HELD, Bound.CUT):
        return True
    most = math.inf if guest.option.max_rate is None else guest.option.max_rate
    return min(guest.option.min_rate, most) <= pages <= most
