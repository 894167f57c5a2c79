# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy of the kernel's KSM: against a model of ksmd, whatever happens on the host."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memshare.model import KsmCounters, Mode
from memshare.policy import Host
from memshare.policy.ksm import KsmConfig, KsmLook, KsmPhase, KsmState, Marked, Steering, steer
from memshare.policy.pressure import Pressure

GIB_PAGES = 1 << 18
CONFIG = KsmConfig(enabled=True)
DEFAULTS = {
    "advisor_max_cpu": "70",
    "advisor_mode": "none",
    "advisor_target_scan_time": "200",
    "pages_to_scan": "100",
    "run": "0",
    "sleep_millisecs": "20",
}


def guest(
    pid: int, domain: str = "", group: str | None = "default", mode: Mode = Mode.CONTENT
) -> Marked:
    return Marked(
        pid=pid, process=f"{pid} (qemu)", domain=domain or f"vm{pid}", group=group, mode=mode
    )


ALIENS = [
    Marked(pid=1, process="1 (firefox)"),
    guest(2, group="tenant-a"),
    guest(3, group=None),
    guest(4, mode=Mode.OFF),
    guest(5, mode=Mode.ZERO),
]


class Kernel:
    """ksmd: a page costs page_ns, and half of a guest's pages have an equal, merged at their second visit."""

    def __init__(self, page_ns: float = 2000.0, *, is_old: bool = False) -> None:
        self.knobs = dict(DEFAULTS)
        self.marked: dict[int, Marked] = {}
        self.pages = 4 * GIB_PAGES  # of each guest
        self.tuner = ""
        self.urgency = 0.0
        self.now_ns = self.cpu_ns = 0
        self.state = KsmState()
        self._page_ns = page_ns
        self._is_old = is_old
        self._scanned = 0.0
        self._left = 0.0  # pages of the full scan at work
        self._scans = 0
        self._visits: dict[int, int] = {}
        if is_old:
            self.knobs = {name: DEFAULTS[name] for name in DEFAULTS if "advisor" not in name}

    def add(self, marked: Marked) -> None:
        self.marked[marked.pid] = marked

    def steer(self, config: KsmConfig = CONFIG) -> Steering:
        """Look, steer, obey."""
        steering = steer(self.look(), self.state, self.pressure(), config)
        self.knobs |= steering.knobs
        self.state = steering.state
        return steering

    def run(
        self, seconds: float, config: KsmConfig = CONFIG, look_seconds: float = 1.0
    ) -> Steering:
        """Let time pass, and steer now and then."""
        end_ns = self.now_ns + seconds * 1e9
        while True:
            steering = self.steer(config)
            if self.now_ns >= end_ns:
                return steering
            self._work(look_seconds)

    def look(self) -> KsmLook:
        merged = sum(self.pages // 2 for visits in self._visits.values() if visits >= 2)
        known = sum(self.pages for visits in self._visits.values() if visits >= 1)
        return KsmLook(
            taken_ns=self.now_ns,
            knobs=dict(self.knobs),
            counters=KsmCounters(
                pages_shared=0,
                pages_sharing=merged,
                pages_unshared=known - merged,
                pages_volatile=0,
                zero_pages=0,
                full_scans=self._scans,
                pages_scanned=None if self._is_old else int(self._scanned),
                profit_bytes=0,
            ),
            ksmd_cpu_ns=self.cpu_ns,
            default_group="default",
            marked=tuple(self.marked.values()),
            tuner=self.tuner,
        )

    def pressure(self) -> Pressure:
        host = Host(cpus=2, total_bytes=1 << 34, available_bytes=1 << 33)
        return Pressure(
            taken_ns=self.now_ns, host=host, urgency=self.urgency, full_stall_ratio=0, cause="model"
        )

    def _work(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        living = [pid for pid in self._visits if pid in self.marked]
        if self.knobs["run"] != "1" or not (self.marked or self._visits):
            return
        batch = int(self.knobs["pages_to_scan"])
        batch_ns = batch * self._page_ns
        batches = seconds * 1e9 / (batch_ns + int(self.knobs["sleep_millisecs"]) * 1e6)
        pages = batches * batch
        self.cpu_ns += int(batches * batch_ns)
        self._scanned += pages
        self._visits = {pid: self._visits[pid] for pid in living} | {
            pid: 0 for pid in self.marked if pid not in self._visits
        }
        self._left -= pages
        while self._left <= 0 and self._visits:
            self._scans += 1
            self._visits = {pid: visits + 1 for pid, visits in self._visits.items()}
            self._left += len(self._visits) * self.pages


@pytest.mark.parametrize("alien", ALIENS, ids=lambda alien: alien.process + str(alien.group))
@pytest.mark.parametrize("is_running", [False, True])
def test_one_alien_stops_ksmd(alien: Marked, is_running: bool) -> None:
    kernel = Kernel()
    kernel.urgency = 1.0
    kernel.add(guest(10))
    if is_running:
        assert kernel.run(5).phase is KsmPhase.SCANNING
    kernel.add(alien)
    steering = kernel.steer()
    assert (steering.phase, kernel.knobs["run"]) == (KsmPhase.OFF, "0")
    assert (alien.domain or alien.process) in steering.reason
    del kernel.marked[alien.pid]
    assert kernel.steer().phase is KsmPhase.SCANNING


def test_what_is_merged_stays_merged_and_is_told() -> None:
    kernel = Kernel()
    kernel.urgency = 1.0
    kernel.add(guest(10))
    kernel.run(60)
    kernel.add(ALIENS[0])
    assert "2.0 GiB" in kernel.steer().reason


def test_off_without_guests() -> None:
    kernel = Kernel()
    kernel.urgency = 1.0
    assert kernel.run(30).phase is KsmPhase.OFF
    assert kernel.cpu_ns == 0


def test_calm_may_mean_off() -> None:
    config = KsmConfig(enabled=True, calm_cpu_ratio=0)
    kernel = Kernel()
    kernel.add(guest(10))
    assert kernel.run(5, config).phase is KsmPhase.OFF
    kernel.urgency = 0.5
    assert kernel.run(5, config).phase is KsmPhase.SCANNING


@given(
    page_ns=st.floats(300, 50_000),
    urgency=st.floats(0, 1),
    look_seconds=st.sampled_from([1.0, 10.0]),
    is_old=st.booleans(),
)
def test_cpu_is_what_urgency_allows(
    page_ns: float, urgency: float, look_seconds: float, is_old: bool
) -> None:
    kernel = Kernel(page_ns, is_old=is_old)
    kernel.pages <<= 16  # no full scan ends
    kernel.urgency = urgency
    kernel.add(guest(10))
    kernel.run(200, look_seconds=look_seconds)
    before_ns, cpu_ns = kernel.now_ns, kernel.cpu_ns
    kernel.run(20, look_seconds=look_seconds)
    ratio = (kernel.cpu_ns - cpu_ns) / (kernel.now_ns - before_ns)
    wanted = CONFIG.calm_cpu_ratio + (CONFIG.full_cpu_ratio - CONFIG.calm_cpu_ratio) * urgency
    assert wanted * 0.7 <= ratio <= wanted * 1.35


def test_full_speed_at_once() -> None:
    kernel = Kernel()
    kernel.add(guest(10))
    kernel.run(60)
    kernel.urgency = 1.0
    kernel.steer()
    cpu_ns = kernel.cpu_ns
    kernel.run(1)
    assert kernel.cpu_ns - cpu_ns >= 0.35e9


def test_small_memory_is_not_scanned_for_ever() -> None:
    kernel = Kernel()
    kernel.pages = 1000
    kernel.urgency = 1.0
    kernel.add(guest(10))
    kernel.run(10)
    cpu_ns = kernel.cpu_ns
    config = KsmConfig(enabled=True, barren_scans=10**6)
    kernel.run(100, config)
    scans = kernel.look().counters.full_scans
    kernel.run(100, config)
    assert kernel.look().counters.full_scans - scans <= 100 / CONFIG.full_scan_seconds * 1.3
    assert kernel.cpu_ns - cpu_ns < 1e9


@pytest.mark.parametrize("urgency", [0.1, 1.0])
def test_rests_when_nothing_is_left_and_looks_again(urgency: float) -> None:
    kernel = Kernel()
    kernel.urgency = urgency
    kernel.add(guest(10))
    kernel.add(guest(11))
    resting = kernel.run(1500)
    assert (resting.phase, kernel.knobs["run"]) == (KsmPhase.RESTING, "0")
    assert kernel.look().counters.pages_sharing == 2 * kernel.pages // 2
    scans = kernel.look().counters.full_scans
    kernel.run(CONFIG.probe_seconds + 600)
    assert kernel.look().counters.full_scans - scans >= 2
    kernel.add(guest(12))
    assert kernel.steer().phase is KsmPhase.SCANNING


def test_ended_guests_are_cleared_away() -> None:
    kernel = Kernel()
    kernel.urgency = 1.0
    kernel.add(guest(10))
    assert kernel.run(80).phase is KsmPhase.RESTING
    kernel.marked.clear()
    assert kernel.steer().phase is KsmPhase.SCANNING
    assert kernel.run(30).phase is KsmPhase.OFF
    assert kernel.look().counters.known_pages == 0


def test_knobs_are_not_written_all_the_time() -> None:
    kernel = Kernel()
    kernel.pages <<= 16
    kernel.urgency = 0.5
    kernel.add(guest(10))
    kernel.run(30)
    written = dict(kernel.knobs)
    kernel.run(300)
    assert kernel.knobs == written


def test_advisor_is_used_where_it_is_wanted_and_there() -> None:
    config = KsmConfig(enabled=True, advisor=True)
    kernel = Kernel()
    kernel.urgency = 1.0
    kernel.add(guest(10))
    knobs = kernel.steer(config).knobs
    assert knobs == {
        "advisor_mode": "scan-time",
        "advisor_max_cpu": "50",
        "advisor_target_scan_time": "10",
        "run": "1",
    }
    kernel.knobs["pages_to_scan"] = "4711"  # the advisor's word
    assert kernel.steer(config).phase is KsmPhase.SCANNING
    old = Kernel(is_old=True)
    old.add(guest(10))
    assert "pages_to_scan" in old.steer(config).knobs


def test_two_figures_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="calm-cpu-ratio"):
        msgspec.convert({"calm-cpu-ratio": 0.6, "full-cpu-ratio": 0.5}, KsmConfig)
    with pytest.raises(msgspec.ValidationError, match="full-scan-seconds"):
        msgspec.convert({"full-scan-seconds": 300}, KsmConfig)


@pytest.mark.parametrize("name", ["run", "pages_to_scan", "advisor_mode"])
def test_somebody_elses_knob_is_the_end(name: str) -> None:
    kernel = Kernel()
    kernel.add(guest(10))
    kernel.run(5)
    kernel.knobs[name] = "17"
    steering = kernel.steer()
    assert (steering.phase, steering.knobs) == (KsmPhase.HANDED_OVER, {})
    assert f"set {name} to 17" in steering.reason
    kernel.knobs[name] = DEFAULTS[name]
    kernel.add(ALIENS[0])
    assert kernel.run(20).phase is KsmPhase.HANDED_OVER
    assert kernel.knobs[name] == DEFAULTS[name]


EVENTS = st.one_of(
    st.tuples(st.just("urgency"), st.floats(0, 1)),
    st.tuples(st.just("wait"), st.sampled_from([0.2, 1.0, 10.0, 300.0])),
    st.tuples(st.just("guest"), st.integers(10, 13)),
    st.tuples(st.just("alien"), st.sampled_from(ALIENS)),
    st.tuples(st.just("ends"), st.integers(1, 13)),
    st.tuples(st.just("writes"), st.sampled_from(sorted(DEFAULTS))),
    st.tuples(st.just("tuner"), st.sampled_from(["ksmtuned", ""])),
)


@given(st.lists(EVENTS, max_size=30), st.booleans())
def test_whatever_happens_it_is_private_and_nobody_is_fought(
    events: list[tuple[str, object]], advisor: bool
) -> None:
    config = KsmConfig(enabled=True, advisor=advisor)
    kernel = Kernel()
    is_elses = False
    for event, what in events:
        match event, what:
            case "urgency", float(urgency):
                kernel.urgency = urgency
            case "wait", float(seconds):
                kernel._work(seconds)
            case "guest", int(pid):
                kernel.add(guest(pid))
            case "alien", Marked() as alien:
                kernel.add(alien)
            case "ends", int(pid):
                kernel.marked.pop(pid, None)
            case "writes", str(name):
                kernel.knobs[name] = "17"
                is_elses |= name in kernel.state.written
            case "tuner", str(tuner):
                kernel.tuner = tuner
        is_elses |= bool(kernel.tuner)
        before = dict(kernel.knobs)
        steering = kernel.steer(config)
        assert steering.reason
        if is_elses:
            assert kernel.knobs == before
            assert steering.phase is KsmPhase.HANDED_OVER
            continue
        assert kernel.knobs["run"] == ("1" if steering.phase is KsmPhase.SCANNING else "0")
        if any(alien.pid in kernel.marked for alien in ALIENS):
            assert steering.phase is KsmPhase.OFF
