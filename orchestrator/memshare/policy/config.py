# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy's knobs, as an operator writes them. Every one has a default that can be lived with."""

from typing import Annotated

import msgspec

Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Bytes = Annotated[int, msgspec.Meta(gt=0)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Ratios are 0 to 1, of what the name says; seconds are seconds of the host's time."""

    # What scanning may cost (rates.py).
    budget_cpu_ratio: Ratio = 0.10  # of the host's CPUs, at full urgency
    calm_ratio: Ratio = 0.05  # of that, with plenty of memory free
    new_ratio: Ratio = 0.50  # of that at least, while some guest is new

    # When memory is short (pressure.py). Of the host's memory, or of the cgroup's limit.
    plenty_ratio: Ratio = 0.20  # free beyond the reserve: no hurry. ksmtuned starts below the same
    reserve_ratio: Ratio = 0.05  # the reserve is never smaller
    psi_full_speed_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = (
        0.10  # of time, some task stalled
    )
    swap_in_full_speed_bytes: Bytes = 4 << 20  # a second
    relax_seconds: Positive = 60.0  # from full urgency to none

    # What a guest's scanning is worth (evidence.py, rates.py).
    worth_bytes: Bytes = 256 << 20  # kept per CPU second: full speed
    probe_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05  # of a fertile guest's claim
    pass_seconds: Positive = 5.0  # visiting a guest's RAM more often finds nothing more
    probe_seconds: Positive = 20.0  # and visiting it less often saves next to nothing
    new_passes: Annotated[int, msgspec.Meta(ge=0)] = 2  # that prove nothing about a new guest
    keep_seconds: Positive = 60.0  # how long a merged page has to stay merged to pay
    evidence_passes: Positive = 0.5  # after so much of a pass what was seen counts half
    evidence_seconds: Positive = 60.0  # and after so long
    still_ratio: Ratio = 0.10  # a rate this near to the one in force is left alone

    # What is kept free, and what is done when it is not (guard.py).
    reserve_guests: Annotated[float, msgspec.Meta(ge=0)] = 1.0  # of the largest, un-shared at once
    react_seconds: Positive = 30.0  # how long remedies take, at the present rate of breaks
    balloon_ratio: Ratio = 0.50  # of the reserve: below, balloons
    hook_ratio: Ratio = 0.25  # of the reserve: below, the operator's hook
    step_seconds: Positive = 15.0  # what a step is given before the next one: three passes
    calm_seconds: Positive = 30.0  # above the reserve by a quarter, before a step is taken back
    hook_seconds: Positive = 60.0  # between two runs of the hook
    balloon_keep_ratio: Ratio = 0.50  # of a guest's RAM: no balloon takes it below

    def __post_init__(self) -> None:
        """Refuse what each alone may be, but not together."""
        if self.pass_seconds > self.probe_seconds:
            raise ValueError(
                f"pass-seconds {self.pass_seconds} is above probe-seconds {self.probe_seconds}"
            )
        if self.hook_ratio > self.balloon_ratio:
            raise ValueError(
                f"hook-ratio {self.hook_ratio} is above balloon-ratio {self.balloon_ratio}"
            )
