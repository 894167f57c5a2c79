# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of a host: its parts, its memory, what the policy makes of it."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import get_args

from memshare.daemon.view import View
from memshare.metrics.metric import Kind, Metric, Read, Samples, after_a_look
from memshare.policy import Action
from memshare.policy.snapshot import PAGE_BYTES


def _value(value: Callable[[View], float | None]) -> Read:
    """Read one figure; none where it is None."""

    @after_a_look
    def read(view: View) -> Samples:
        if (figure := value(view)) is not None:
            yield (), figure

    return read


def _values(values: Callable[[View], Mapping[str, float]]) -> Read:
    """Read a figure for each value of the one label."""

    @after_a_look
    def read(view: View) -> Samples:
        for kind, figure in values(view).items():
            yield (kind,), figure

    return read


def _build(view: View | None) -> Samples:
    yield (version("memshare"),), 1


def _parts(view: View | None) -> Samples:
    yield ("daemon",), float(view is not None)
    yield ("broker",), float(view is not None and view.broker is not None)
    for name, answers in view.sources.items() if view is not None else ():
        yield (name,), float(answers)


def _actions(view: View) -> Mapping[str, float]:
    """What was done, by kind. A kind that was never needed is 0, so that its first time is a rise."""
    return {kind.__name__: view.actions.get(kind.__name__, 0) for kind in get_args(Action)}


def _budget(view: View) -> float | None:
    """What all rates were made from; None while there is nobody to steer."""
    return next((rate.budget_cpus for rate in view.decision.rates.values()), None)


METRICS = (
    Metric(
        "memshare_build_info",
        Kind.GAUGE,
        ("version",),
        _build,
        "Always 1; the label has the daemon's version.",
    ),
    Metric(
        "memshare_up",
        Kind.GAUGE,
        ("component",),
        _parts,
        "1 for `daemon` once it has looked at the host, 1 for `broker` and for each libvirt "
        "(by its URI) and folder of sockets if it answered when it was last asked. "
        "A broker that the configuration does not have is 0.",
        "`run`",
    ),
    Metric(
        "memshare_policy_last_run_timestamp_seconds",
        Kind.GAUGE,
        (),
        _value(lambda view: view.taken_seconds),
        "When rates were last decided on, in seconds since 1970.",
    ),
    Metric(
        "memshare_policy_actions_total",
        Kind.COUNTER,
        ("action",),
        _values(_actions),
        "What the policy had done: `SetRate`, `ChangeStep` of the guard, `Balloon`, `RunHook`.",
    ),
    Metric(
        "memshare_policy_urgency_ratio",
        Kind.GAUGE,
        (),
        _value(lambda view: view.decision.pressure.urgency),
        "How much the host is in a hurry for memory; 1 is full speed.",
        "`KSM_THRES_COEF` of ksmtuned",
    ),
    Metric(
        "memshare_policy_budget_cpus",
        Kind.GAUGE,
        (),
        _value(_budget),
        "CPU seconds a second that all scanning together may take now.",
        "`advisor_max_cpu`",
    ),
    Metric(
        "memshare_capacity_bytes",
        Kind.GAUGE,
        (),
        _value(lambda view: view.snapshot.host.capacity_bytes),
        "The host's memory, or the limit of the cgroup that bounds the guests.",
    ),
    Metric(
        "memshare_headroom_bytes",
        Kind.GAUGE,
        (),
        _value(lambda view: view.snapshot.host.headroom_bytes),
        "What may still come into use before somebody is killed.",
    ),
    Metric(
        "memshare_reserve_bytes",
        Kind.GAUGE,
        (),
        _value(lambda view: view.decision.stake.reserve_bytes),
        "What the guard wants left of that: below it remedies begin.",
    ),
    Metric(
        "memshare_unshare_bytes",
        Kind.GAUGE,
        (),
        _value(lambda view: view.decision.stake.unshare_bytes),
        "The worst case: what comes into use if all guests write to all that they share, here or in the kernel's KSM.",
        "`pages_sharing` + `ksm_zero_pages`",
    ),
    Metric(
        "memshare_break_bytes_per_second",
        Kind.GAUGE,
        (),
        _value(lambda view: view.decision.stake.break_bytes),
        "How fast shared memory, zeros too, came back into use of late, by the guard's reckoning.",
        "rate of `cow_ksm` in `/proc/vmstat`",
    ),
    Metric(
        "memshare_guard_step",
        Kind.GAUGE,
        (),
        _value(lambda view: view.decision.step),
        "How far the guard has gone: 0 calm, 1 full speed, 2 balloons, 3 the operator's hook.",
    ),
    Metric(
        "memshare_memory_stalled_seconds_total",
        Kind.COUNTER,
        ("kind",),
        _values(
            lambda view: {
                "some": view.snapshot.host.psi_some_ns / 1e9,
                "full": view.snapshot.host.psi_full_ns / 1e9,
            }
        ),
        "Time in which some, or all, tasks waited for memory (PSI), of the host or of that cgroup.",
    ),
    Metric(
        "memshare_swapped_in_bytes_total",
        Kind.COUNTER,
        (),
        _value(lambda view: view.snapshot.host.swapped_in_pages * PAGE_BYTES),
        "What the host has read back from swap.",
        "`ksm_swpin_copy` in `/proc/vmstat` has KSM's part",
    ),
)
