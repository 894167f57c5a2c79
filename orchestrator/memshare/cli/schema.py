# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reading verbs print with `-o json`, as types, and as JSON Schema (2020-12) made from these.

`python -m memshare.cli.schema` prints docs/schema.json. New keys may come at any time: whoever reads a
document ignores those that it does not know. A key that goes, or means something else, raises `schema`.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

import msgspec

from memshare.cli import show, status
from memshare.crosscheck import Finding as Disagreement
from memshare.growth import Rates
from memshare.model import GroupAudit, PageStats
from memshare.policy.capacity import Fit
from memshare.probes import Finding
from memshare.render import Unit

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _nullable(of: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    """Return the fields of a struct, each of which may be null."""
    return [(name, hint | None) for name, hint in get_type_hints(of).items()]


class _Document(msgspec.Struct, kw_only=True):
    schema: Literal[1]


class _Named(msgspec.Struct, kw_only=True):
    domain: str
    source: str
    uuid: str
    state: str
    reason: str
    saved_bytes: int | None


Guest = msgspec.defstruct("Guest", _nullable(PageStats), bases=(_Named,), kw_only=True)
GuestInTop = msgspec.defstruct("GuestInTop", _nullable(Rates), bases=(Guest,), kw_only=True)
GuestInShow = msgspec.defstruct(
    "GuestInShow",
    [
        (fact.key, str | None, None) if fact.unit is Unit.TEXT else (fact.key, int | None)
        for facts in show.SECTIONS.values()
        for fact in facts
        if fact.key.startswith(("wanted_", "broker_"))
    ],
    bases=(Guest,),
    kw_only=True,
)


class ListDocument(_Document):
    """`memshare list`."""

    domains: list[Guest]  # type: ignore[valid-type]


class TopDocument(_Document):
    """A line of `memshare top`."""

    look: int
    domains: list[GuestInTop]  # type: ignore[valid-type]


class ShowDocument(_Document):
    """`memshare show`."""

    guest: GuestInShow  # type: ignore[valid-type]


class BrokerGlance(msgspec.Struct, kw_only=True):
    socket: str
    version: str | None
    protocol: int | None
    pid: int | None
    problem: str


class GuestsGlance(msgspec.Struct, kw_only=True):
    count: int
    states: dict[str, int]
    asked: Literal["daemon", "guests"]


class StatusDocument(_Document):
    """`memshare status`."""

    host: status.Host
    broker: BrokerGlance
    guests: GuestsGlance
    totals: status.Totals
    groups: list[status.GroupGlance]
    domains: list[Guest]  # type: ignore[valid-type]


class Rate(msgspec.Struct, kw_only=True):
    pages: int
    cpu_limit_percent: int
    bound: str
    value: float
    yield_bytes: float
    urgency: float
    budget_cpus: float


class ExplainDocument(_Document):
    """`memshare explain`."""

    domain: str
    held: str | None
    rate: Rate | None
    reason: str


FitsDocument = msgspec.defstruct(
    "FitsDocument", list(get_type_hints(Fit).items()), bases=(_Document,), kw_only=True
)


class ProbeFinding(Finding, frozen=True, kw_only=True):
    probe: str


class DoctorDocument(_Document):
    """`memshare doctor`."""

    findings: list[ProbeFinding]


class AuditDocument(_Document):
    """`memshare audit`."""

    problem_count: int
    groups: list[GroupAudit]
    disagreements: list[Disagreement]


DOCUMENTS: Mapping[str, Any] = {
    "audit": AuditDocument,
    "doctor": DoctorDocument,
    "explain": ExplainDocument,
    "fits": FitsDocument,
    "list": ListDocument,
    "show": ShowDocument,
    "status": StatusDocument,
    "top": TopDocument,
}


def schema() -> dict[str, object]:
    """Return the schema: `$defs` has one of each verb's document, by the verb's name, and what they have in common."""
    template = "#/$defs/{name}"
    _, parts = msgspec.json.schema_components(DOCUMENTS.values(), ref_template=template)
    by_verb = {DOCUMENTS[verb].__name__: verb for verb in DOCUMENTS}
    return {
        "$schema": DIALECT,
        "title": "what memshare prints with -o json, in $defs by verb",
        "$defs": {by_verb.get(name, name): part for name, part in parts.items()},
    }


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=1))
