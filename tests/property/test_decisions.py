# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold of every decision, whatever guests and hosts say."""

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memshare.model import Option
from memshare.policy import ChangeStep, Config, SetRate, Snapshot, State, decide
from memshare.policy.evidence import Evidence
from memshare.policy.pressure import Pressure
from memshare.policy.rates import Bound, Rate, budget_cpus, rates
from memshare.policy.snapshot import Guest, Host
from memshare.policy.split import Claim, level, part
from memshare.simulate import SimulatedGuest, SimulatedHost, run

GIB = 1 << 30
CONFIG = Config()

ratios = st.floats(0, 1)
amounts = st.floats(0, 1000)


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    floor = draw(st.floats(0, 100))
    return Claim(draw(st.floats(1e-6, 1e6)), floor, floor + draw(st.floats(0, 100)))


@given(amounts, st.lists(claims(), min_size=1, max_size=20))
@example(
    893.0,  # a small claim after large ones have come to their ceilings
    [Claim(1.9e5, 0, 84), Claim(1.5e5, 55, 155), Claim(9.7e4, 15, 52), Claim(1e-6, 44, 705)],
)
def test_split_gives_all_there_is_and_no_more(amount: float, all_claims: list[Claim]) -> None:
    at = level(amount, all_claims)
    total = sum(part(one, at) for one in all_claims)
    floors = sum(one.floor for one in all_claims)
    ceilings = sum(one.ceiling for one in all_claims)
    assert total == pytest.approx(max(floors, min(amount, ceilings)), rel=1e-6, abs=1e-6)
    assert all(one.floor <= part(one, at) <= one.ceiling for one in all_claims)


@given(amounts, amounts, st.lists(claims(), min_size=1, max_size=20))
def test_split_is_monotone(one: float, other: float, all_claims: list[Claim]) -> None:
    low, high = sorted((one, other))
    assert level(low, all_claims) <= level(high, all_claims) * (1 + 1e-9)


@st.composite
def options(draw: st.DrawFn) -> Option:
    min_rate = draw(st.sampled_from([0, 0, 0, 1, 500, 50_000]))
    most = draw(st.one_of(st.none(), st.integers(min_rate, 200_000)))
    return Option(min_rate=min_rate, max_rate=most, weight=draw(st.integers(1, 10)))


@st.composite
def known_guests(draw: st.DrawFn, name: str) -> tuple[Guest, Evidence]:
    """A guest as it may be after any past: its evidence need not follow from its stats."""
    guest = SimulatedGuest(domain=name, ram_pages=1, option=draw(options()), rate_pages=1).look(0)
    ram_bytes = draw(st.integers(0, 1 << 24)) * 4096
    guest = msgspec.structs.replace(
        guest,
        is_held=draw(st.integers(0, 9)) == 0,
        stats=msgspec.structs.replace(guest.stats, ram_bytes=ram_bytes),
    )
    known = Evidence(
        taken_ns=0,
        stats=guest.stats,
        kept_bytes=draw(st.floats(0, 1e12)),
        spent_cpu_ns=draw(st.floats(0, 1e12)),
        page_cost_ns=draw(st.floats(2, 50_000)),
        is_proven=draw(st.booleans()),
    )
    return guest, known


@st.composite
def fleets(draw: st.DrawFn) -> list[tuple[Guest, Evidence]]:
    return [draw(known_guests(f"g{i}")) for i in range(draw(st.integers(1, 12)))]


def host(headroom_bytes: int = 8 * GIB, **changes: float) -> Host:
    return Host(
        **{"cpus": 2.0, "total_bytes": 16 * GIB, "available_bytes": headroom_bytes, **changes}
    )


def rates_at(urgency: float, fleet: list[tuple[Guest, Evidence]], cpus: float = 2.0) -> list[Rate]:
    snapshot = Snapshot(taken_ns=1, host=host(cpus=cpus), guests=tuple(guest for guest, _ in fleet))
    pressure = Pressure(
        taken_ns=1, host=snapshot.host, urgency=urgency, full_stall_ratio=0, cause="a test"
    )
    return rates(snapshot, {guest.domain: known for guest, known in fleet}, pressure, CONFIG)


def floor_pages(guest: Guest) -> float:
    """One page a second is everybody's floor: a guest at 0 would never be seen to turn."""
    most = math.inf if guest.option.max_rate is None else guest.option.max_rate
    return 0 if guest.is_held else min(max(1, guest.option.min_rate), most)


@given(fleets(), ratios, st.floats(0.1, 256))
def test_budget_is_never_exceeded(
    fleet: list[tuple[Guest, Evidence]], urgency: float, cpus: float
) -> None:
    given_rates = rates_at(urgency, fleet, cpus)
    spent = sum(rate.cpu_ratio for rate in given_rates)
    floors = sum(floor_pages(guest) * known.page_cost_ns / 1e9 for guest, known in fleet)
    whole = budget_cpus(cpus, 1.0, False, CONFIG)
    allowed = max(given_rates[0].budget_cpus, min(floors, whole))
    assert given_rates[0].budget_cpus <= whole * (1 + 1e-9)
    assert spent <= allowed * (1 + 1e-6) + 1e-9


@given(fleets(), ratios)
def test_floors_and_ceilings_are_kept(fleet: list[tuple[Guest, Evidence]], urgency: float) -> None:
    for rate, (guest, _) in zip(rates_at(urgency, fleet), fleet, strict=True):
        if rate.bound is not Bound.CUT:
            assert rate.pages >= floor_pages(guest)
        if guest.option.max_rate is not None:
            assert rate.pages <= guest.option.max_rate
        if guest.is_held:
            assert rate.pages == 0
        assert 1 <= rate.cpu_limit_percent <= 100
        assert rate.reason.startswith(f"{rate.pages} pages/s")


@given(fleets(), ratios, ratios)
def test_total_rises_with_urgency(
    fleet: list[tuple[Guest, Evidence]], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    spent = [sum(rate.cpu_ratio for rate in rates_at(urgency, fleet)) for urgency in (low, high)]
    rounding = sum(known.page_cost_ns / 1e9 for _, known in fleet)
    assert spent[0] <= spent[1] * (1 + 1e-6) + rounding


@given(fleets(), st.data())
def test_more_yield_is_never_less_rate(
    fleet: list[tuple[Guest, Evidence]], data: st.DataObject
) -> None:
    """For the guest whose yield rises, all else unchanged."""
    chosen = data.draw(st.integers(0, len(fleet) - 1))
    guest, known = fleet[chosen]
    more = msgspec.structs.replace(known, kept_bytes=known.kept_bytes * 2 + (1 << 30))
    changed = [*fleet[:chosen], (guest, more), *fleet[chosen + 1 :]]
    urgency = data.draw(ratios)
    assert rates_at(urgency, changed)[chosen].pages >= rates_at(urgency, fleet)[chosen].pages - 1


def test_rate_follows_yield_and_weight() -> None:
    """Two guests that differ in one thing get rates in that proportion while the budget decides."""
    fleet = []
    for name, kept_bytes, weight in (("a", 64 << 20, 1), ("b", 128 << 20, 1), ("c", 64 << 20, 3)):
        guest = SimulatedGuest(
            domain=name, ram_pages=1 << 24, option=Option(weight=weight), rate_pages=1
        ).look(0)
        known = Evidence(
            taken_ns=0,
            stats=guest.stats,
            kept_bytes=kept_bytes,
            spent_cpu_ns=1e9,
            page_cost_ns=4000,
            is_proven=True,
        )
        fleet.append((guest, known))
    one, double_yield, triple_weight = (rate.pages for rate in rates_at(0.9, fleet))
    assert double_yield / one == pytest.approx(2, rel=0.01)
    assert triple_weight / one == pytest.approx(3, rel=0.01)


@st.composite
def counters(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, int]:
    return {name: draw(st.integers(0, (1 << 64) - 1)) for name in names}


FIELDS = (
    "ram_bytes scan_rate_pages cpu_limit_percent present_pages shared_pages zero_pages unique_pages "
    "scanned_pages merged_pages zeroed_pages breaks scan_cpu_ns passes"
).split()


@settings(max_examples=60)
@given(st.data())
def test_nonsense_is_survived(data: st.DataObject) -> None:
    """Counters that fall, RAM of no bytes, clocks that stand still: there is a decision, within bounds."""
    state = State()
    now_ns = 0
    for _ in range(4):
        now_ns += data.draw(st.sampled_from([0, 1, 10**9, 10**12]))
        guests = []
        for i in range(data.draw(st.integers(0, 3))):
            looked = SimulatedGuest(domain=f"g{i}", ram_pages=1, option=data.draw(options())).look(
                data.draw(st.integers(0, now_ns))
            )
            stats = msgspec.structs.replace(
                looked.stats,
                state=data.draw(st.sampled_from(["running", "refused", "paused", "from-later"])),
                **data.draw(counters(tuple(FIELDS))),
            )
            guests.append(msgspec.structs.replace(looked, stats=stats))
        seen = host(
            data.draw(st.integers(0, 16 * GIB)),
            **data.draw(counters(("psi_some_ns", "psi_full_ns", "swapped_in_pages"))),
        )
        decision = decide(Snapshot(taken_ns=now_ns, host=seen, guests=tuple(guests)), state, CONFIG)
        assert 0 <= decision.pressure.urgency <= 1
        assert decision.stake.reserve_bytes >= CONFIG.reserve_ratio * seen.capacity_bytes - 1
        told = [one for one in decision.actions if isinstance(one, ChangeStep)]
        assert bool(told) == (decision.step != state.guard.step), "never silent"
        assert all(one.reason for one in decision.actions)
        for one in decision.actions:
            if isinstance(one, SetRate):
                assert one.scan_rate_pages >= 0
        state = decision.state


def steady_fleet(draw: st.DrawFn) -> list[SimulatedGuest]:
    fleet = []
    for i in range(draw(st.integers(2, 6))):
        ram_pages = draw(st.sampled_from([1 << 15, 1 << 17, 1 << 18]))
        common = draw(st.floats(0, 0.8))
        fleet.append(
            SimulatedGuest(
                domain=f"g{i}",
                ram_pages=ram_pages,
                fresh=ram_pages * common,
                unique=ram_pages * (0.9 - common),
                breaks=draw(st.sampled_from([0, 0, 0.001, 0.01])),
                writes=draw(st.sampled_from([0, 100, 2000])),
            )
        )
    return fleet


@settings(max_examples=15)
@given(st.data())
def test_rates_come_to_rest(data: st.DataObject) -> None:
    """Where nothing changes no rate goes up and down: in ten minutes it turns round twice at most.

    Moves by less than a twentieth of what all scan do not count: a guest of which 20 pages a second are
    looked at, at the smallest of budgets, goes to 40 and back when one of them merges.
    """
    simulated = SimulatedHost(
        guests=steady_fleet(data.draw),  # type: ignore[arg-type]
        cpus=data.draw(st.sampled_from([1, 4, 32])),
        total_bytes=16 * GIB,
        used_bytes=data.draw(st.sampled_from([1, 9, 11])) * GIB,
    )
    looks = [
        {guest.domain: guest.stats.scan_rate_pages for guest in moment.snapshot.guests}
        for moment in run(simulated, 2400, CONFIG, step_seconds=5)
        if moment.seconds > 1800
    ]
    for domain in looks[0]:
        moves = [
            after[domain] - before[domain]
            for before, after in pairwise(looks)
            if abs(after[domain] - before[domain]) > sum(after.values()) / 20
        ]
        turns = sum(1 for before, after in pairwise(moves) if (before > 0) != (after > 0))
        assert turns <= 2, f"{domain}: {[look[domain] for look in looks]}"
