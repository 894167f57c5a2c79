# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the broker answer, and is it what the configuration says?"""

import msgspec

from memshare.probes import Finding, Probe, Verdict
from memshare.probes.kernel import AS_ROOT

WITHOUT = "guests share nothing new"


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of the configuration, and of the broker that it names."""

    #: What is wrong with the configuration; then the broker is not asked.
    config_problem: str = ""
    #: The version of memshare that asks.
    version: str = ""
    #: The broker's control socket; empty: the configuration wants none.
    socket: str = ""
    #: Why it did not answer.
    problem: str = ""
    #: Whether it is only that we may not ask.
    forbidden: bool = False
    broker_version: str = ""
    groups: tuple[str, ...] = ()


def configuration(seen: Reached) -> Finding:
    """Whether the daemon could read it."""
    if seen.config_problem:
        return Finding(
            Verdict.FAIL, seen.config_problem, "correct that file, and try memshare config check"
        )
    return Finding(Verdict.PASS, "can be read")


def broker(seen: Reached) -> Finding | None:
    """Whether it answers."""
    if seen.config_problem:
        return None
    if not seen.socket:
        return Finding(
            Verdict.WARN,
            f"the configuration names none: {WITHOUT}, unless somebody else announces them",
            "set broker in /etc/memshare/memshare.toml",
        )
    if seen.forbidden:
        return Finding(Verdict.WARN, f"not asked: {seen.problem}", AS_ROOT)
    if seen.problem:
        return Finding(
            Verdict.FAIL, f"{seen.problem}: {WITHOUT}", "systemctl enable --now memshared.socket"
        )
    if seen.broker_version != seen.version:
        return Finding(
            Verdict.WARN,
            f"memshared {seen.broker_version} runs, and this is memshare {seen.version}",
            "systemctl restart memshared",
        )
    served = f"serves {', '.join(seen.groups)}" if seen.groups else "serves no group yet"
    return Finding(Verdict.PASS, f"memshared {seen.broker_version} answers, {served}")


PROBES: tuple[Probe[Reached], ...] = (configuration, broker)
