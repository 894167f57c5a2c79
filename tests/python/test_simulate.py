# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts over time: who is scanned, how soon that changes, and what the guard saves."""

from collections.abc import Callable, Sequence

import pytest

from memshare.errors import UsageError
from memshare.policy import Action, Balloon, ChangeStep, Config, Step
from memshare.simulate import Moment, SimulatedGuest, SimulatedHost, read, replay, run, write

GIB = 1 << 30
RAM_PAGES = 1 << 17  # 512 MiB
FERTILE = ("f0", "f1", "f2", "f3")


def fertile(domain: str) -> SimulatedGuest:
    """Most of it is common, and a slow churn keeps it from ever being through."""
    return SimulatedGuest(
        domain=domain,
        ram_pages=RAM_PAGES,
        fresh=RAM_PAGES * 0.6,
        zero=RAM_PAGES * 0.1,
        unique=RAM_PAGES * 0.2,
        breaks=0.002,
    )


def barren(domain: str) -> SimulatedGuest:
    """Unlike all others, and busy."""
    return SimulatedGuest(domain=domain, ram_pages=RAM_PAGES, unique=RAM_PAGES * 0.9, writes=300)


def six_guests(used_gib: float) -> SimulatedHost:
    guests = [*map(fertile, FERTILE), barren("b0"), barren("b1")]
    return SimulatedHost(guests=guests, cpus=2, total_bytes=24 * GIB, used_bytes=used_gib * GIB)


def mean(moments: Sequence[Moment], domain: str, begin: float, end: float) -> float:
    """Pages a second of a guest over a time."""
    seen = [one.scanned[domain] for one in moments if begin < one.seconds <= end]
    return sum(seen) / len(seen)


@pytest.mark.parametrize("used_gib", [2, 17, 19], ids=["plenty", "some", "short"])
def test_fertile_guests_are_scanned_and_a_barren_one_that_turns_is_found(used_gib: float) -> None:
    def turn(host: SimulatedHost) -> None:
        if host.seconds == 120:
            host.guests[4].turn(RAM_PAGES * 0.6)
            host.guests[4].breaks = 0.002

    moments = list(run(six_guests(used_gib), 200, Config(), happen=turn))
    good = sum(mean(moments, domain, 50, 80) for domain in FERTILE)
    poor = sum(mean(moments, domain, 50, 80) for domain in ("b0", "b1"))
    assert good / (good + poor) >= 0.8
    fair = sum(mean(moments, domain, 170, 190) for domain in FERTILE) / 4
    assert mean(moments, "b0", 170, 190) >= 0.8 * fair
    assert mean(moments, "b1", 170, 190) <= 0.3 * fair


def squeeze_memory(host: SimulatedHost) -> None:
    host.used_bytes = 22 * GIB


def stall(host: SimulatedHost) -> None:
    host.stalled_ns += 0.2e9


@pytest.mark.parametrize("squeeze", [squeeze_memory, stall])
def test_full_speed_within_two_seconds(squeeze: Callable[[SimulatedHost], None]) -> None:
    """By headroom or by PSI alone, on a calm host that asks its guests every ten seconds."""

    def happen(host: SimulatedHost) -> None:
        if host.seconds >= 63:
            squeeze(host)

    host = six_guests(2)
    moments = list(run(host, 70, Config(), happen=happen))
    calm = [one for one in moments if one.seconds < 63][-1]
    assert calm.decision.look_seconds == 10
    planned = {one.seconds: sum(r.pages for r in one.decision.rates.values()) for one in moments}
    (first, *_) = [one for one in moments if one.decision.pressure.urgency == 1]
    assert first.seconds <= 65
    assert planned[first.seconds] > 5 * planned[calm.seconds]
    spent = sum(rate.cpu_ratio for rate in first.decision.rates.values())
    everyone_at_most = RAM_PAGES * 6 / Config().pass_seconds
    assert planned[first.seconds] >= 0.99 * everyone_at_most or spent >= 0.99 * 0.2


def test_converged_host_costs_next_to_nothing() -> None:
    guests = [
        SimulatedGuest(domain=f"g{i}", ram_pages=RAM_PAGES, fresh=5e4, unique=7e4) for i in range(6)
    ]
    host = SimulatedHost(guests=guests, cpus=2, total_bytes=16 * GIB)
    list(run(host, 900, Config()))
    before = sum(guest.cpu_ns for guest in guests)
    list(run(host, 100, Config()))
    assert (sum(guest.cpu_ns for guest in guests) - before) / 100e9 < 0.0005  # of a CPU
    assert all(guest.shared > 49_000 for guest in guests)


def test_new_guest_is_looked_through_at_once() -> None:
    host = six_guests(2)
    list(run(host, 300, Config()))
    newcomer = fertile("newcomer")
    host.guests = [*host.guests, newcomer]
    list(run(host, 60, Config()))
    assert newcomer.shared > 0.6 * RAM_PAGES * 0.6


class Unguarded(SimulatedHost):
    """Rates are set; what the guard asks for is not done."""

    def carry_out(self, actions: Sequence[Action]) -> None:
        super().carry_out([one for one in actions if not isinstance(one, Balloon)])


@pytest.mark.parametrize("kind", [SimulatedHost, Unguarded])
def test_mass_break_is_survived_with_the_guard_only(kind: type[SimulatedHost]) -> None:
    """Sixteen guests of 512 MiB share 6 GiB of memory, then all begin to write to all they share."""
    guests = [
        SimulatedGuest(
            domain=f"g{i}", ram_pages=RAM_PAGES, fresh=RAM_PAGES * 0.8, unique=RAM_PAGES * 0.1
        )
        for i in range(16)
    ]
    host = kind(guests=guests, cpus=8, total_bytes=10 * GIB, sharers=8)

    def happen(simulated: SimulatedHost) -> None:
        if simulated.seconds == 400:
            simulated.total_bytes = 6 * GIB  # the limit that sharing has made possible
        if simulated.seconds == 500:
            for guest in simulated.guests:
                guest.breaks, guest.differ_ratio = 0.05, 1.0

    moments = list(run(host, 600, Config(), happen=happen))
    assert all(one.decision.step is Step.CALM for one in moments if one.seconds < 499)
    told = [a.step for m in moments for a in m.decision.actions if isinstance(a, ChangeStep)]
    assert Step.BALLOON in told or Step.HOOK in told
    if kind is Unguarded:
        assert host.oom_seconds is not None
    else:
        assert host.oom_seconds is None


def test_thousand_guests() -> None:
    """And nobody is above the budget, also by what was really spent."""
    guests = [(fertile if i % 3 else barren)(f"g{i}") for i in range(1000)]
    host = SimulatedHost(guests=guests, cpus=64, total_bytes=600 * GIB)
    moments = list(run(host, 300, Config(), step_seconds=5))
    for moment in moments:
        assert sum(rate.cpu_ratio for rate in moment.decision.rates.values()) <= 6.4
    assert sum(guest.cpu_ns for guest in guests) / 300e9 <= 6.4


def test_recording_is_replayed_to_the_same_decisions() -> None:
    moments = list(run(six_guests(17), 60, Config()))
    lines = list(write(one.snapshot for one in moments))
    again = list(replay(read(lines), Config()))
    assert [one.actions for one in again] == [one.decision.actions for one in moments]


def test_recording_names_the_line_at_fault() -> None:
    header, first, *_ = write(one.snapshot for one in run(six_guests(17), 20, Config()))
    with pytest.raises(UsageError, match="first line"):
        list(read([first]))
    with pytest.raises(UsageError, match="line 3"):
        list(read([header, first, b"{}\n"]))
    with pytest.raises(UsageError, match="line 3: taken before"):
        list(read([header, first, first]))
