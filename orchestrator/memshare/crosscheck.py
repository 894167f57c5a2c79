# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether guests and broker say the same. Pure: it compares two looks that somebody took.

The looks are not of one moment, so a difference may only mean that a page was shared in between. What is a
real one is still there at the next look: `lasting`.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from memshare.model import Broker, Domain, Group, Session

#: States in which an engine has a session with its broker.
CONNECTED = ("running", "paused", "draining")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What does not agree. kind and where stay the same from look to look, figures in `what` need not."""

    kind: str
    where: str
    what: str


def session_of(domain: Domain, broker: Broker) -> Session | None:
    """Return a guest's session, by the name that its plugin gave: the newest, if several have it."""
    if domain.stats is None:
        return None
    group = next((each for each in broker.groups if each.name == domain.stats.group), None)
    named = [each for each in group.sessions if each.guest == domain.name] if group else []
    active = [each for each in named if each.state == "active"]
    return next(reversed(active or named), None)


def crosscheck(
    domains: Sequence[Domain], broker: Broker, older_pids: Collection[int]
) -> list[Finding]:
    """Compare. older_pids: processes that ran before this broker, and may share pages of the one before it."""
    findings = []
    served = {group.name: group for group in broker.groups}
    for name in sorted({d.stats.group for d in domains if d.stats and d.stats.state in CONNECTED}):
        members = [d for d in domains if d.stats and d.stats.group == name]
        connected = [d for d in members if d.stats and d.stats.state in CONNECTED]
        if name not in served:
            guests = ", ".join(domain.name for domain in connected)
            what = f"is not served by this broker; in it: {guests}"
            findings.append(Finding(kind="group", where=f"group {name}", what=what))
            continue
        active = [each for each in served[name].sessions if each.state == "active"]
        if len(active) < len(connected):
            what = (
                f"{len(connected)} guests say that they are connected, the broker has {len(active)}"
            )
            findings.append(Finding(kind="sessions", where=f"group {name}", what=what))
        findings += [
            finding
            for domain in members
            if (session := session_of(domain, broker))
            and session.pid not in older_pids
            and (finding := _grants(domain, grants_of(session.pid, served[name])))
        ]
    return findings


def grants_of(pid: int, group: Group) -> int:
    """Return a process's grants: those of sessions that it lost are still its own."""
    return sum(session.grants for session in group.sessions if session.pid == pid)


def _grants(domain: Domain, grants: int) -> Finding | None:
    """Every shared page is mapped under a grant."""
    assert domain.stats is not None
    if domain.stats.shared_pages <= grants:
        return None
    what = f"shares {domain.stats.shared_pages} pages, the broker counts {grants} grants"
    return Finding(kind="grants", where=domain.name, what=what)


def lasting(before: Iterable[Finding], now: Iterable[Finding]) -> list[Finding]:
    """Return the findings of now that were there before."""
    known = {(finding.kind, finding.where) for finding in before}
    return [finding for finding in now if (finding.kind, finding.where) in known]
