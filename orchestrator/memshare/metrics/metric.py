# SPDX-License-Identifier: GPL-2.0-or-later
"""What a metric is: a row of the table."""

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from memshare.daemon.view import View

#: The values of a sample's labels, in the order of its metric's, and the figure.
Sample = tuple[tuple[str, ...], float]
Samples = Iterable[Sample]
Read = Callable[[View | None], Samples]


class Kind(StrEnum):
    """What Prometheus takes a metric for."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """One metric. ksm is what an operator of KSM knows as the same or the nearest thing, in Markdown.

    The last label of a histogram is `le`; its samples are cumulative buckets in ascending order, `+Inf` last.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    read: Read
    help: str
    ksm: str = ""

    @property
    def series(self) -> str:
        """The name of its samples, as queries have it."""
        return f"{self.name}_bucket" if self.kind is Kind.HISTOGRAM else self.name


def after_a_look(read: Callable[[View], Samples]) -> Read:
    """Return the same for a daemon that may not have looked yet: there is nothing to read then."""
    return lambda view: () if view is None else read(view)
