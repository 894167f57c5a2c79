# SPDX-License-Identifier: GPL-2.0-or-later
"""How much the host is in a hurry for memory: one number, 0 to 1, and what it comes from.

    headroom    1 when no more than the reserve is left, 0 with plenty_ratio of the memory beyond it
    PSI         1 when some task waited for memory psi_full_speed_ratio of the time
    swap-in     1 at swap_in_full_speed_bytes a second, if headroom is not plenty

The urgency is the largest of them, at once, and falls by 1/relax_seconds a second at most. Headroom comes
first because it speaks before anybody has waited; ksmtuned knows nothing else. PSI (Linux,
Documentation/accounting/psi.rst) says that tasks are waiting already, whatever the figures promise: a cgroup
at its limit, a fragmented host. Swap-in is third: a working set that is read back. With plenty of memory
free it is only yesterday's swap coming home.

Rising at once and falling slowly is all the hysteresis that is needed: a signal that flickers
holds the urgency up, and rates do not flicker with it.
"""

import msgspec

from memshare.policy.config import Config
from memshare.policy.snapshot import PAGE_BYTES, Host
from memshare.render import human_bytes


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """The urgency at one moment. host is the look that it was read from."""

    taken_ns: int
    host: Host
    urgency: float
    full_stall_ratio: float
    cause: str


def assess(
    taken_ns: int, host: Host, before: Pressure | None, reserve_bytes: int, config: Config
) -> Pressure:
    """Return the urgency now. Without an earlier look there is only headroom to judge by."""
    plenty_bytes = max(1.0, config.plenty_ratio * host.capacity_bytes)
    spare_ratio = (host.headroom_bytes - reserve_bytes) / plenty_bytes
    headroom = _bounded(1.0 - spare_ratio)
    left = f"{human_bytes(host.headroom_bytes)} left, {human_bytes(reserve_bytes)} of it reserved"
    signals = [(headroom, left)]
    full_stall_ratio = 0.0
    held = 0.0
    if before is not None:
        if taken_ns <= before.taken_ns:
            return before
        elapsed_ns = taken_ns - before.taken_ns
        some = _bounded((host.psi_some_ns - before.host.psi_some_ns) / elapsed_ns)
        full_stall_ratio = _bounded((host.psi_full_ns - before.host.psi_full_ns) / elapsed_ns)
        stalled = f"tasks waited for memory {some:.0%} of the time"
        signals.append((_bounded(some / config.psi_full_speed_ratio), stalled))
        if headroom > 0:
            pages = max(0, host.swapped_in_pages - before.host.swapped_in_pages)
            swapped_bytes = pages * PAGE_BYTES * 1e9 / elapsed_ns
            swapped = f"{human_bytes(int(swapped_bytes))} a second swapped in"
            signals.append((_bounded(swapped_bytes / config.swap_in_full_speed_bytes), swapped))
        held = before.urgency - elapsed_ns / (config.relax_seconds * 1e9)
    urgency, cause = max(signals, key=lambda signal: signal[0])
    if held > urgency:
        assert before is not None
        urgency, cause = held, f"{left}; it was shorter a moment ago"
    return Pressure(
        taken_ns=taken_ns,
        host=host,
        urgency=urgency,
        full_stall_ratio=full_stall_ratio,
        cause=cause,
    )


def psi_triggers(config: Config) -> tuple[str, str]:
    """What to write to the memory pressure file, to be woken when PSI alone asks for full speed.

    The window is a second, so that another is left of the two in which full speed is promised. Without
    CAP_SYS_RESOURCE the kernel takes multiples of two seconds only: the second best.
    """
    part = config.psi_full_speed_ratio
    first, second = (f"some {int(part * window)} {window}" for window in (1_000_000, 2_000_000))
    return first, second


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value))
