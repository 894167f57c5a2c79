# SPDX-License-Identifier: GPL-2.0-or-later
"""One amount divided among many: in proportion to their claims, each within bounds of its own.

    part = bounded(level * claim, floor, ceiling),  level as high as sum(part) <= amount allows

It is water-filling: what one cannot take because of its ceiling, and what floors take beforehand, changes the
level for all others and nothing else. The level is exact, so the result depends on nothing but its inputs,
and is monotone in the amount.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """What one may get. A claim above 0; 0 <= floor <= ceiling."""

    claim: float
    floor: float
    ceiling: float


def level(amount: float, claims: Sequence[Claim]) -> float:
    """Return the level; infinite when all ceilings fit, 0 when the floors already take the amount."""
    total = sum(one.floor for one in claims)
    if total >= amount:
        return 0.0
    # Between two bends the sum grows linearly; slope is the sum of claims between their bounds.
    bends = sorted(
        bend
        for one in claims
        if one.ceiling > one.floor
        for bend in ((one.floor / one.claim, one.claim), (one.ceiling / one.claim, -one.claim))
    )
    at = slope = 0.0
    for bend, change in bends:
        if slope > 0 and total + slope * (bend - at) > amount:
            return _between(at, bend, amount, claims)
        total += max(0.0, slope) * (bend - at)
        at, slope = bend, slope + change
    return float("inf")


def _between(low: float, high: float, amount: float, claims: Sequence[Claim]) -> float:
    """Return the level between two neighbouring bends. Sums anew: what was added up on the way there is rounded, and
    a small claim is lost in the sum of large ones that came and went."""
    total = math.fsum(part(one, low) for one in claims)
    slope = math.fsum(
        one.claim
        for one in claims
        if one.floor / one.claim <= low < one.ceiling / one.claim and one.ceiling > one.floor
    )
    return min(high, max(low, low + (amount - total) / slope)) if slope else low


def part(one: Claim, at: float) -> float:
    """What one gets at a level."""
    return min(one.ceiling, max(one.floor, at * one.claim))
