# SPDX-License-Identifier: GPL-2.0-or-later
"""Single decisions: evidence, urgency, reasons, the guard's steps, whether one more guest fits."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from memshare.model import Option, PageStats
from memshare.policy import (
    Balloon,
    ChangeStep,
    Config,
    Decision,
    Guest,
    Host,
    RunHook,
    SetRate,
    Snapshot,
    State,
    Step,
    decide,
    explain,
    fits,
    forget,
    glance,
    psi_triggers,
)
from memshare.policy.evidence import Evidence, observe
from samples import stats

GIB = 1 << 30
PAGES = GIB // 4096
SECOND_NS = 10**9
CONFIG = Config()


def guest(
    domain: str = "web1",
    seconds: float = 0,
    option: Option | None = None,
    balloon_bytes: int | None = None,
    **figures: Any,
) -> Guest:
    figures = {"ram_bytes": GIB, "cpu_limit_percent": 1, **figures}
    return Guest(
        domain=domain,
        taken_ns=int(seconds * SECOND_NS),
        stats=msgspec.convert(stats(**figures), PageStats),
        option=option or Option(),
        balloon_bytes=balloon_bytes,
    )


def look(
    seconds: float,
    headroom_bytes: int,
    *guests: Guest,
    merged_bytes: Mapping[str, int] | None = None,
    **figures: Any,
) -> Snapshot:
    host = {"cpus": 4.0, "total_bytes": 16 * GIB, "available_bytes": headroom_bytes, **figures}
    return Snapshot(
        taken_ns=int(seconds * SECOND_NS),
        host=Host(**host),
        guests=guests,
        merged_bytes=merged_bytes or {},
    )


def after(*looks: Snapshot, state: State | None = None) -> Decision:
    """The last decision of several looks."""
    decision = None
    for snapshot in looks:
        decision = decide(snapshot, decision.state if decision else state or State(), CONFIG)
    assert decision is not None
    return decision


def proven(**figures: Any) -> Evidence:
    """What is known after a guest was visited as a whole, with these changes since its start."""
    before = observe(guest(passes=2), None, CONFIG)
    now = guest(seconds=10, passes=3, scanned_pages=PAGES, scan_cpu_ns=SECOND_NS, **figures)
    return observe(now, before, CONFIG)


def test_yield_is_bytes_kept_per_cpu_second() -> None:
    known = proven(merged_pages=25_600, shared_pages=25_600)
    assert known.is_proven
    assert known.yield_bytes == pytest.approx(100 << 20, rel=0.01)


def test_pages_that_break_soon_are_worth_little() -> None:
    lasting = proven(merged_pages=1000, shared_pages=10_000, breaks=10)
    fleeting = proven(merged_pages=1000, shared_pages=10, breaks=990)
    assert lasting.yield_bytes > 50 * fleeting.yield_bytes


def test_zeros_touched_again_count_as_breaks() -> None:
    kept = proven(zeroed_pages=1000, zero_pages=1000)
    refilled = proven(zeroed_pages=1000, zero_pages=10)
    assert kept.break_bytes == 0
    assert refilled.break_bytes == pytest.approx(990 * 4096 / 10)
    assert refilled.yield_bytes < kept.yield_bytes / 50


def test_first_passes_prove_nothing() -> None:
    before = observe(guest(), None, CONFIG)
    now = guest(seconds=10, passes=1, scanned_pages=PAGES, scan_cpu_ns=SECOND_NS)
    known = observe(now, before, CONFIG)
    assert not known.is_proven
    assert known.page_cost_ns > 1000  # but what a page costs is known


def test_engine_that_started_anew_is_new() -> None:
    known = observe(guest(seconds=20, scanned_pages=5), proven(), CONFIG)
    assert not known.is_proven
    assert known.kept_bytes == 0


def test_a_guest_whose_memory_has_changed_is_new_again() -> None:
    """Not one that is only visited less often, and so is found to have written to more of what is visited."""
    figures = {"passes": 2, "scanned_pages": 0, "changed_pages": 0, "scan_cpu_ns": 0}
    known = observe(guest(**figures), None, CONFIG)
    proofs = []
    for second, visited_pages, changed_ratio in (
        (10, PAGES, 0.02),
        (20, PAGES, 0.02),
        (30, PAGES // 16, 0.10),
        (40, PAGES // 16, 0.30),
        (50, PAGES // 16, 0.50),
        (60, PAGES, 0.02),
        (70, PAGES // 16, 0.90),
        (80, 3 * PAGES, 0.02),
    ):
        figures["passes"] += visited_pages // PAGES
        figures["scanned_pages"] += visited_pages
        figures["changed_pages"] += int(visited_pages * changed_ratio)
        figures["scan_cpu_ns"] += SECOND_NS
        known = observe(guest(seconds=second, **figures), known, CONFIG)
        proofs.append(known.is_proven)
    assert proofs == [True, True, True, True, True, True, False, True]


def test_guest_that_did_not_answer_changes_nothing() -> None:
    known = proven(merged_pages=5, shared_pages=5)
    assert observe(guest(seconds=10), known, CONFIG) is not known  # counters fell: anew
    same = msgspec.structs.replace(guest(seconds=10), stats=known.stats)
    assert observe(same, known, CONFIG) is known


def test_urgency_is_headroom_first() -> None:
    assert after(look(0, 12 * GIB)).pressure.urgency == 0
    half = after(look(0, int((0.05 + 0.10) * 16 * GIB))).pressure
    assert half.urgency == pytest.approx(0.5)
    assert "left" in half.cause
    assert after(look(0, GIB // 2)).pressure.urgency == 1


def test_a_cgroup_limit_bounds_headroom() -> None:
    limited = look(0, 12 * GIB, limit_bytes=4 * GIB, limit_used_bytes=4 * GIB - (100 << 20))
    assert limited.host.headroom_bytes == 100 << 20
    assert after(limited).pressure.urgency == 1


def test_psi_alone_asks_for_full_speed() -> None:
    decision = after(look(0, 12 * GIB), look(1, 12 * GIB, psi_some_ns=SECOND_NS // 10))
    assert decision.pressure.urgency == 1
    assert "waited" in decision.pressure.cause
    assert psi_triggers(CONFIG) == ("some 100000 1000000", "some 200000 2000000")


def test_swap_in_counts_unless_memory_is_plenty() -> None:
    pages = (4 << 20) // 4096
    plenty = after(look(0, 12 * GIB), look(1, 12 * GIB, swapped_in_pages=pages))
    scarce = after(look(0, 3 * GIB), look(1, 3 * GIB, swapped_in_pages=pages))
    assert (plenty.pressure.urgency, scarce.pressure.urgency) == (0, 1)


def test_urgency_falls_slowly() -> None:
    decision = after(look(0, GIB // 2), look(30, 12 * GIB))
    assert decision.pressure.urgency == pytest.approx(0.5)
    assert "a moment ago" in decision.pressure.cause


def test_rising_is_seen_without_asking_guests() -> None:
    decision = after(look(0, 12 * GIB))
    assert decision.look_seconds == 10

    def is_rising(seconds: float, state: State, headroom_bytes: int, some_ns: int = 0) -> bool:
        host = look(seconds, headroom_bytes, psi_some_ns=some_ns).host
        return glance(int(seconds * SECOND_NS), host, state, decision, CONFIG)[0]

    assert not is_rising(1, decision.state, 12 * GIB)
    assert is_rising(1, decision.state, GIB // 2)
    assert is_rising(1, decision.state, 12 * GIB, SECOND_NS // 20)
    # What one second says is not weighed over all since the decision.
    state = decision.state
    for t in range(1, 9):
        state = glance(t * SECOND_NS, look(t, 12 * GIB).host, state, decision, CONFIG)[1]
    assert is_rising(9, state, 12 * GIB, SECOND_NS // 20)


def test_rates_in_force_are_left_alone() -> None:
    snapshot = look(0, 12 * GIB, guest(state="running"))
    decision = after(snapshot)
    (setting,) = decision.actions
    assert isinstance(setting, SetRate)
    assert after(snapshot, snapshot).actions == ()  # it has not answered since it was told
    near = guest(
        seconds=1,
        scan_rate_pages=int(setting.scan_rate_pages * 0.95),
        cpu_limit_percent=setting.cpu_limit_percent,
    )
    assert after(snapshot, look(1, 12 * GIB, near)).actions == ()
    lost = guest(seconds=1, scan_rate_pages=0)
    assert after(snapshot, look(1, 12 * GIB, lost)).actions != ()


def test_every_guest_has_a_reason() -> None:
    held = msgspec.structs.replace(guest("held"), is_held=True)
    snapshot = look(
        0,
        12 * GIB,
        guest("new"),
        guest("slow", option=Option(max_rate=7)),
        held,
        guest("fast", option=Option(min_rate=90_000)),
        guest("other", state="refused", refusal="its RAM is locked"),
    )
    decision = after(snapshot)
    reasons = {one.domain: explain(one.domain, snapshot, decision) for one in snapshot.guests}
    assert "new" in reasons["new"]
    assert reasons["slow"].startswith("7 pages/s") and "max-rate" in reasons["slow"]
    assert "paused by the operator" in reasons["held"]
    assert "min-rate" in reasons["fast"]
    assert reasons["other"] == "no rate is set: its state is refused, its RAM is locked"
    with pytest.raises(KeyError):
        explain("nobody", snapshot, decision)


def test_floors_beyond_the_whole_budget_are_cut_alike() -> None:
    greedy = [guest(name, option=Option(min_rate=10**6)) for name in ("a", "b")]
    decision = after(look(0, 12 * GIB, *greedy))
    first, second = decision.rates.values()
    assert first.pages == second.pages < 10**6
    assert first.cpu_ratio * 2 == pytest.approx(0.4, rel=0.01)
    assert "min-rates together" in first.reason


def sharing(domain: str, shared_bytes: int, seconds: float = 0, **figures: Any) -> Guest:
    pages = shared_bytes // 4096
    return guest(domain, seconds, shared_pages=pages, passes=9, **figures)


def test_reserve_follows_the_largest_guest() -> None:
    at_stake = after(look(0, 12 * GIB, sharing("a", GIB), sharing("b", 3 * GIB))).stake
    assert at_stake.unshare_bytes == 4 * GIB
    assert (at_stake.largest_domain, at_stake.reserve_bytes) == ("b", 3 * GIB)


def test_reserve_follows_what_the_kernel_merged_too() -> None:
    merged = {"a": 3 * GIB, "no-plugin": GIB}
    seen = look(0, 12 * GIB, sharing("a", GIB), sharing("b", 3 * GIB), merged_bytes=merged)
    at_stake = after(seen).stake
    assert at_stake.unshare_bytes == 8 * GIB
    assert (at_stake.largest_domain, at_stake.reserve_bytes) == ("a", 4 * GIB)


def test_reserve_follows_breaks_up_to_all_that_is_shared() -> None:
    first = look(0, 12 * GIB, sharing("a", 2 * GIB), sharing("b", 2 * GIB))
    breaking = look(
        10, 12 * GIB, sharing("a", 2 * GIB, 10, breaks=10 * 2560), sharing("b", 2 * GIB, 10)
    )
    assert after(first, breaking).stake.reserve_bytes == 2 * GIB + 30 * 2560 * 4096
    storm = look(10, 12 * GIB, sharing("a", 2 * GIB, 10, breaks=10**7), sharing("b", 2 * GIB, 10))
    assert after(first, storm).stake.reserve_bytes == 4 * GIB


def steps(decision: Decision) -> list[Step]:
    return [one.step for one in decision.actions if isinstance(one, ChangeStep)]


def test_guard_goes_as_far_as_headroom_asks() -> None:
    big = sharing("a", 4 * GIB)
    assert steps(after(look(0, 5 * GIB, big))) == []
    assert steps(after(look(0, 3 * GIB, big))) == [Step.SCAN]
    assert steps(after(look(0, int(1.5 * GIB), big))) == [Step.BALLOON]
    last = after(look(0, GIB // 2, big))
    assert steps(last) == [Step.HOOK]
    (hook,) = (one for one in last.actions if isinstance(one, RunHook))
    assert hook.missing_bytes == int(3.5 * GIB)


def test_guard_does_not_wait_for_what_is_falling_fast() -> None:
    big = sharing("a", 4 * GIB)
    decision = after(look(0, 5 * GIB, big), look(1, int(3.9 * GIB), big))
    assert steps(decision) == [Step.BALLOON]
    assert "as it is falling" in str(decision.actions)


def test_guard_goes_on_when_a_step_brings_nothing() -> None:
    big = sharing("a", 4 * GIB)
    # Headroom asks for scanning all the time: balloons are one step beyond, and the hook is not called.
    stuck = [look(t, 3 * GIB, big) for t in range(60)]
    taken = []
    state = State()
    for snapshot in stuck:
        decision = decide(snapshot, state, CONFIG)
        taken += steps(decision)
        state = decision.state
    assert taken == [Step.SCAN, Step.BALLOON]


def test_hook_runs_again_but_not_each_time() -> None:
    big = sharing("a", 4 * GIB)
    state, ran = State(), []
    for t in range(130):
        decision = decide(look(t, GIB // 2, big), state, CONFIG)
        ran += [t for one in decision.actions if isinstance(one, RunHook)]
        state = decision.state
    assert ran == [0, 60, 120]


def test_balloons_take_what_is_missing_and_give_it_back() -> None:
    def at(t: float, headroom_bytes: int, *balloons: int) -> Snapshot:
        guests = [
            sharing(f"g{i}", 2 * GIB, t, ram_bytes=4 * GIB, balloon_bytes=left)
            for i, left in enumerate(balloons)
        ]
        return look(t, headroom_bytes, *guests)

    low = after(at(0, int(0.9 * GIB), 4 * GIB, 3 * GIB))
    asked = {one.domain: one.target_bytes for one in low.actions if isinstance(one, Balloon)}
    # 1.1 GiB are missing; there are 2 + 1 GiB above half of the RAM.
    assert asked["g0"] == pytest.approx(4 * GIB - 1.1 * GIB * 2 / 3, rel=1e-6)
    assert asked["g1"] == pytest.approx(3 * GIB - 1.1 * GIB / 3, rel=1e-6)
    again = decide(at(1, int(0.9 * GIB), 4 * GIB, 3 * GIB), low.state, CONFIG)
    assert not any(isinstance(one, Balloon) for one in again.actions), "it is on its way"

    state, given = again.state, []
    told = []
    for t in range(2, 200):
        decision = decide(at(t, 12 * GIB, asked["g0"], asked["g1"]), state, CONFIG)
        given += [one for one in decision.actions if isinstance(one, Balloon)]
        told += steps(decision)
        state = decision.state
        if given:
            break
    assert told == [Step.SCAN, Step.CALM]
    assert {one.domain: one.target_bytes for one in given} == {
        "g0": pytest.approx(4 * GIB, abs=2),
        "g1": pytest.approx(3 * GIB, abs=2),
    }


def test_no_balloon_goes_below_what_is_kept() -> None:
    low = after(look(0, 0, sharing("a", 4 * GIB, ram_bytes=4 * GIB, balloon_bytes=3 * GIB)))
    (balloon,) = (one for one in low.actions if isinstance(one, Balloon))
    assert balloon.target_bytes == 2 * GIB


def test_no_balloon_takes_what_an_engine_has_not_registered() -> None:
    def at(t: float, balloon_bytes: int) -> Snapshot:
        refused = guest(seconds=t, state="refused", ram_bytes=0, balloon_bytes=balloon_bytes)
        return look(t, 0, refused)

    state, left = State(), 4 * GIB
    for t in range(20):
        decision = decide(at(t, left), state, CONFIG)
        left = min(
            [one.target_bytes for one in decision.actions if isinstance(one, Balloon)] + [left]
        )
        state = decision.state
    assert left == 2 * GIB


def test_balloons_that_are_switched_off_give_all_back_at_once_and_take_nothing() -> None:
    def at(t: float, balloon_bytes: int, *, may_inflate: bool) -> Snapshot:
        one = sharing("a", 2 * GIB, t, ram_bytes=4 * GIB, balloon_bytes=balloon_bytes)
        return msgspec.structs.replace(look(t, 0, one), may_inflate=may_inflate)

    state = after(at(0, 4 * GIB, may_inflate=True)).state
    assert state.guard.ballooned == {"a": 4 * GIB}
    short = after(at(1, 3 * GIB, may_inflate=False), state=state)
    (balloon,) = (one for one in short.actions if isinstance(one, Balloon))
    assert (balloon.target_bytes, balloon.reason) == (
        4 * GIB,
        "balloons are to be left alone: 1.0 GiB of what was taken",
    )
    done = after(at(2, 4 * GIB, may_inflate=False), state=short.state)
    assert done.state.guard.ballooned == {}
    assert not [one for one in done.actions if isinstance(one, Balloon)]


def test_a_guest_that_started_anew_is_ballooned_anew() -> None:
    def at(t: float) -> Snapshot:
        return look(t, 0, sharing("a", 2 * GIB, t, ram_bytes=4 * GIB, balloon_bytes=4 * GIB))

    first = after(at(0))
    assert first.state.guard.ballooned == {"a": 4 * GIB}
    state = forget(first.state, {"a"})
    assert (state.guard.ballooned, state.evidence, state.asked) == ({}, {}, {})
    again = decide(at(1), state, CONFIG)
    assert any(isinstance(one, Balloon) for one in again.actions)
    assert forget(first.state, {"b"}) == first.state


def test_what_was_taken_from_a_guest_that_is_not_found_yet_is_not_forgotten() -> None:
    state = after(look(0, 0, sharing("a", 2 * GIB, ram_bytes=4 * GIB, balloon_bytes=4 * GIB))).state
    for t in range(1, 200):
        state = decide(look(t, 12 * GIB), state, CONFIG).state
    assert state.guard.ballooned == {"a": 4 * GIB}


def test_guests_that_are_never_scanned_are_no_reason_to_hurry() -> None:
    never = guest("never", option=Option(max_rate=0))
    old = {"a": proven(scan_rate_pages=1)}
    state = State(evidence=old)
    a = guest("a", 11, passes=3, scanned_pages=PAGES, scan_cpu_ns=SECOND_NS)
    alone = decide(look(11, 16 * GIB, a), state, CONFIG).rates["a"]
    beside = decide(look(11, 16 * GIB, a, never), state, CONFIG).rates
    assert beside["a"].budget_cpus == alone.budget_cpus
    assert beside["never"].pages == 0


def test_fits_without_a_like_counts_all_of_the_ram() -> None:
    snapshot = look(0, 5 * GIB, sharing("a", 2 * GIB))
    assert fits(3 * GIB, snapshot, State(), CONFIG).is_safe
    refused = fits(4 * GIB, snapshot, State(), CONFIG)
    assert not refused.is_safe
    assert refused.free_bytes == -GIB
    assert refused.reason == (
        "4.0 GiB sharing nothing: 4.0 GiB at the start, 4.0 GiB afterwards, "
        "reserve then 2.0 GiB, of 5.0 GiB left; 1.0 GiB missing"
    )


def test_fits_like_a_guest_counts_what_that_keeps_private() -> None:
    like = sharing("a", GIB, ram_bytes=4 * GIB, present_pages=2 * PAGES, unique_pages=PAGES)
    snapshot = look(0, 5 * GIB, like)
    fit = fits(8 * GIB, snapshot, State(), CONFIG, like)
    assert (fit.private_bytes, fit.start_bytes, fit.reserve_bytes) == (2 * GIB, 4 * GIB, 2 * GIB)
    assert fit.is_safe
    assert fit.free_bytes == GIB - int(0.05 * 16 * GIB)
    assert not fits(8 * GIB, snapshot, State(), CONFIG, like, count=2).is_safe


def test_fits_does_not_judge_by_a_guest_that_was_not_visited_yet() -> None:
    young = guest("young", present_pages=1)
    assert fits(GIB, look(0, 5 * GIB, young), State(), CONFIG, young).private_bytes == GIB


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"budget-cpu-ratio": 1.5}', "budget-cpu-ratio"),
        ('{"budget-cpu": 0.5}', "unknown field `budget-cpu`"),
        ('{"hook-ratio": 0.6}', "hook-ratio 0.6 is above balloon-ratio 0.5"),
        ('{"pass-seconds": 30}', "pass-seconds 30.0 is above probe-seconds 20.0"),
    ],
)
def test_config_refuses(text: str, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.json.decode(text, type=Config)


def test_policy_is_pure() -> None:
    """Of this package it takes what is as pure: what reads and writes is nowhere in reach."""
    script = "import sys, memshare.policy; print(*(m for m in sys.modules if 'memshare.' in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    others = {name for name in done.stdout.split() if not name.startswith("memshare.policy")}
    assert others == {"memshare.model", "memshare.render"}


def test_near_rates_are_set_where_their_sum_is_too_much() -> None:
    """Each is within a tenth of its rate; together they are above the budget."""
    snapshot = look(0, 12 * GIB, *map(guest, "abcde"))
    decision = after(snapshot)
    over = [
        guest(
            one.domain,
            1,
            scan_rate_pages=int(one.scan_rate_pages * 1.05),
            cpu_limit_percent=one.cpu_limit_percent,
        )
        for one in decision.actions
        if isinstance(one, SetRate)
    ]
    again = decide(look(1, 12 * GIB, *over), decision.state, CONFIG)
    assert [one.domain for one in again.actions if isinstance(one, SetRate)] == [*"abcde"]


def test_cost_of_a_page_rises_at_once_and_falls_slowly() -> None:
    dear = proven()
    cheap = guest(seconds=20, passes=4, scanned_pages=2 * PAGES, scan_cpu_ns=SECOND_NS + 1000)
    after_half_life = observe(cheap, dear, CONFIG).page_cost_ns
    assert after_half_life == pytest.approx(dear.page_cost_ns / 2, rel=0.01)
    dearer = guest(seconds=20, passes=4, scanned_pages=2 * PAGES, scan_cpu_ns=9 * SECOND_NS)
    assert observe(dearer, dear, CONFIG).page_cost_ns == pytest.approx(8e9 / PAGES)


def test_old_evidence_weighs_half_after_a_minute_however_little_was_scanned() -> None:
    before = proven()
    later = guest(seconds=70, passes=3, scanned_pages=PAGES + 1, scan_cpu_ns=SECOND_NS + 1)
    assert observe(later, before, CONFIG).spent_cpu_ns == pytest.approx(SECOND_NS / 2, rel=0.01)


def test_fits_like_counts_pages_of_which_some_are_shared_and_absent() -> None:
    like = sharing("a", GIB, ram_bytes=4 * GIB, present_pages=PAGES, unique_pages=PAGES)
    assert fits(4 * GIB, look(0, 9 * GIB, like), State(), CONFIG, like).private_bytes == GIB


def test_what_a_silent_guests_balloon_has_taken_is_not_forgotten() -> None:
    def at(t: float, headroom_bytes: int, balloon_bytes: int | None) -> Snapshot:
        one = sharing("a", 2 * GIB, t, ram_bytes=4 * GIB, balloon_bytes=balloon_bytes)
        return look(t, headroom_bytes, one)

    state = after(at(0, 0, 4 * GIB)).state
    for t in range(1, 120):
        state = decide(at(t, 12 * GIB, None), state, CONFIG).state
    assert state.guard.ballooned == {"a": 4 * GIB}
    given: list[int] = []
    for t in range(120, 200):
        decision = decide(at(t, 12 * GIB, 2 * GIB), state, CONFIG)
        given += [one.target_bytes for one in decision.actions if isinstance(one, Balloon)]
        state = decision.state
    assert given
    assert max(given) == 4 * GIB
