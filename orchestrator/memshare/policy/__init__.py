# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure decisions: what each guest may scan, when the host is in danger, whether one more guest fits.

    decision = decide(snapshot, state, config)   rates.py has the law, guard.py the ladder
    forget(state, domains)                       guests that have ended
    glance(taken_ns, host, state, decision, config)  whether to decide before it is time
    explain(domain, snapshot, decision)          why a guest has its rate
    fits(ram_bytes, snapshot, state, config)     capacity.py
    psi_triggers(config)                         what to arm, to be woken early

Nothing here reads a clock or a file, or imports from `clients`.
"""

from memshare.policy.actions import Action, Balloon, ChangeStep, RunHook, SetRate, Step
from memshare.policy.capacity import Fit, fits
from memshare.policy.config import Config
from memshare.policy.decision import Decision, State, decide, explain, forget, glance
from memshare.policy.pressure import psi_triggers
from memshare.policy.snapshot import Guest, Host, Snapshot

__all__ = [
    "Action",
    "Balloon",
    "ChangeStep",
    "Config",
    "Decision",
    "Fit",
    "Guest",
    "Host",
    "RunHook",
    "SetRate",
    "Snapshot",
    "State",
    "Step",
    "decide",
    "explain",
    "fits",
    "forget",
    "glance",
    "psi_triggers",
]
