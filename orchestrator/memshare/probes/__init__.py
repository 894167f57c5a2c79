# SPDX-License-Identifier: GPL-2.0-or-later
"""What `memshare doctor` asks, a file for each thing that is looked at.

A probe is a function from what was seen to a finding. It does no I/O: `clients/` looks, a probe
judges. It returns None where what another probe reports leaves it nothing to judge. To add one: write
the function, and name it in the `PROBES` of its file.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec


class Verdict(StrEnum):
    """How bad it is: nothing to do, worth knowing, in the way."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(msgspec.Struct, frozen=True):
    """What one probe says: one line, and what to do about it unless all is well."""

    verdict: Verdict
    what: str
    fix: str = ""


Seen = TypeVar("Seen")
Probe = Callable[[Seen], Finding | None]


def examine(seen: Seen, probes: Sequence[Probe[Seen]]) -> list[tuple[str, Finding]]:
    """Return each probe's name, as people write it, with its finding; in order."""
    findings = [(probe.__name__.replace("_", "-"), probe(seen)) for probe in probes]
    return [(name, finding) for name, finding in findings if finding is not None]
