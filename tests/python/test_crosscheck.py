# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests and broker may disagree on."""

from typing import Any

import msgspec
import pytest

from fakes.fake_broker import broker_status
from memshare.crosscheck import Finding, crosscheck, lasting
from memshare.model import Broker, Domain, PageStats
from samples import group, session, stats


def guest(name: str, **figures: Any) -> Domain:
    return Domain(name=name, stats=msgspec.convert(stats(**figures), PageStats))


def broker(*sessions: dict[str, Any], name: str = "demo") -> Broker:
    return msgspec.convert(broker_status(group(name=name, sessions=list(sessions))), Broker)


def found(domains: list[Domain], other: Broker, older: set[int] | None = None) -> list[Any]:
    return [(each.kind, each.where) for each in crosscheck(domains, other, older or set())]


def test_those_that_agree() -> None:
    domains = [guest("a", shared_pages=5), guest("b", state="refused"), Domain(name="c")]
    assert found(domains, broker(session(guest="a", grants=5))) == []


def test_a_page_without_a_grant() -> None:
    domains = [guest("a", shared_pages=6)]
    (finding,) = crosscheck(domains, broker(session(guest="a", grants=5)), set())
    assert finding.what == "shares 6 pages, the broker counts 5 grants"
    assert found(domains, broker(session(guest="a", grants=5)), {9}) == [], (
        "of an earlier broker's store"
    )
    lost = session(guest="a", grants=3, state="departed")
    assert found(domains, broker(lost, session(guest="a", grants=3))) == [], (
        "grants of a session that it lost"
    )
    assert found(
        domains, broker(session(guest="a", grants=3, pid=8), session(guest="a", grants=3))
    ) == [("grants", "a")]


def test_a_guest_that_the_broker_does_not_know() -> None:
    domains = [guest("a"), guest("b"), guest("c", state="waiting-for-broker")]
    assert found(domains, broker(session(guest="a", grants=0))) == [("sessions", "group demo")]
    departed = session(guest="b", grants=0, state="departed")
    assert found(domains, broker(session(guest="a", grants=0), departed)) == [
        ("sessions", "group demo")
    ]
    assert (
        found(domains, broker(session(guest="a", grants=0), session(guest="pid 4", grants=0))) == []
    )


def test_a_group_that_the_broker_does_not_serve() -> None:
    assert found([guest("a")], broker(name="other")) == [("group", "group demo")]


@pytest.mark.parametrize(("kind", "kept"), [("x", 1), ("y", 0)])
def test_only_what_is_there_again_lasts(kind: str, kept: int) -> None:
    before = [Finding(kind="x", where="a", what="1 of 2")]
    assert len(lasting(before, [Finding(kind=kind, where="a", what="2 of 3")])) == kept
    assert lasting(before, [Finding(kind="x", where="b", what="")]) == []
