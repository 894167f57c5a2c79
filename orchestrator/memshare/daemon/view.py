# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon saw and did at its last look. Its socket and its metrics tell this and nothing else."""

from collections.abc import Mapping

import msgspec

from memshare.model import Broker, Domain, KsmView
from memshare.policy import Decision, Snapshot


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One look, and what came of it.

    taken_seconds is the time of day (seconds since 1970) when it was decided. domains has every guest that was
    found, `snapshot.guests` those of them that have answered with figures at least once. broker is None where it
    does not answer or there is none, ksm where the configuration leaves the kernel's KSM alone. sources says of each
    libvirt and folder whether it answered when it was last asked. actions counts what was carried out since the daemon has started, by the
    name of the action's class.
    """

    taken_seconds: float
    domains: tuple[Domain, ...]
    snapshot: Snapshot
    decision: Decision
    broker: Broker | None = None
    sources: Mapping[str, bool] = msgspec.field(default_factory=dict)
    ksm: KsmView | None = None
    actions: Mapping[str, int] = msgspec.field(default_factory=dict)
