# SPDX-License-Identifier: GPL-2.0-or-later
"""`fits`: whether one more guest is safe on this host, with the numbers.

Two things must hold. At the start nothing of it is shared yet: all that it touches must have room, beside
the smallest reserve. Afterwards its private part stays in use, and the reserve must still be there for
what is at stake then, its own share included. A guest that is like no other, or like one that has not been
visited as a whole yet, is taken to use all of its RAM and to share nothing: a promise that needs no luck.

What guests have not touched of the RAM they were given is not counted, here as elsewhere: only what sharing adds to
that risk is ours to answer for. `free_bytes` says how much room is left beyond what was asked.
"""

import msgspec

from memshare.policy.config import Config
from memshare.policy.decision import State
from memshare.policy.guard import stake
from memshare.policy.snapshot import PAGE_BYTES, Guest, Snapshot
from memshare.render import human_bytes


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. free_bytes is what would be left; negative, it is what is missing."""

    is_safe: bool
    headroom_bytes: int
    start_bytes: int
    private_bytes: int
    reserve_bytes: int
    free_bytes: int
    reason: str


def fits(
    ram_bytes: int,
    snapshot: Snapshot,
    state: State,
    config: Config,
    like: Guest | None = None,
    count: int = 1,
) -> Fit:
    """Return whether `count` more guests with so much RAM are safe, each like that one where it is given."""
    host = snapshot.host
    private_bytes, shared_bytes, break_bytes = ram_bytes, 0, 0.0
    if like is not None and like.stats.ram_bytes and like.stats.passes >= max(1, config.new_passes):
        scale = ram_bytes / like.stats.ram_bytes
        stats = like.stats
        # A SHARED page need not be present; then present less shared is too little.
        seen_pages = stats.unique_pages + stats.volatile_pages + stats.broken_pages
        private_pages = max(seen_pages, stats.present_pages - stats.shared_pages)
        private_bytes = min(ram_bytes, int(private_pages * PAGE_BYTES * scale))
        shared_bytes = min(ram_bytes - private_bytes, int(like.unshare_bytes * scale))
        if like.domain in state.evidence:
            break_bytes = state.evidence[like.domain].break_bytes * scale
    start_bytes = count * (private_bytes + shared_bytes)
    now = stake(snapshot, state.evidence, config)
    wanted = (
        config.reserve_guests * max(now.largest_bytes, shared_bytes)
        + (now.break_bytes + count * break_bytes) * config.react_seconds
    )
    smallest = config.reserve_ratio * host.capacity_bytes
    reserve = int(max(smallest, min(now.unshare_bytes + count * shared_bytes, wanted)))
    headroom = host.headroom_bytes
    room_start = headroom - start_bytes - int(smallest)
    room_after = headroom - count * private_bytes - reserve
    free_bytes = min(room_start, room_after)
    who = f"{count} more of {human_bytes(ram_bytes)}" if count > 1 else human_bytes(ram_bytes)
    kind = f"like {like.domain}" if like else "sharing nothing"
    reason = (
        f"{who} {kind}: {human_bytes(start_bytes)} at the start, {human_bytes(count * private_bytes)} "
        f"afterwards, reserve then {human_bytes(reserve)}, of {human_bytes(headroom)} left; "
        + (
            f"{human_bytes(free_bytes)} to spare"
            if free_bytes >= 0
            else f"{human_bytes(-free_bytes)} missing"
        )
    )
    return Fit(
        is_safe=free_bytes >= 0,
        headroom_bytes=headroom,
        start_bytes=start_bytes,
        private_bytes=count * private_bytes,
        reserve_bytes=reserve,
        free_bytes=free_bytes,
        reason=reason,
    )
