# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics over HTTP. Each scrape is answered from one View, so that its figures belong together.

Scrapes run in threads of the server's own. They read what the daemon has seen anyway: no guest is asked because
somebody scrapes, and a scraper that hangs holds nobody up.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, core, start_http_server
from prometheus_client.registry import Collector

from memshare.daemon.view import View
from memshare.errors import HostError
from memshare.metrics.metric import Kind, Metric, Sample
from memshare.metrics.table import METRICS

Look = Callable[[], View | None]


class ViewCollector(Collector):
    """Tells the latest View; look returns None while there is none."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[core.Metric]:
        """Yield what there is to tell now."""
        view = self._look()
        for metric in METRICS:
            if samples := [(_text(labels), value) for labels, value in metric.read(view)]:
                yield _family(metric, samples)


def serve(address: str, port: int, look: Look) -> WSGIServer:
    """Listen for scrapes, in a thread; port 0 takes any that is free, `server_port` tells which.

    Raises HostError when the address cannot be had. Whoever calls this ends it by `shutdown` and `server_close`.
    """
    registry = CollectorRegistry()
    registry.register(ViewCollector(look))
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise HostError(
            f"metrics: {address} port {port}: {(error.strerror or str(error)).lower()}",
            "see `address` and `port` of [metrics] in the configuration",
        ) from error
    return server


def _family(metric: Metric, samples: list[Sample]) -> core.Metric:
    if metric.kind is Kind.HISTOGRAM:
        histogram = core.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels[:-1])
        for labels, buckets in groupby(samples, key=lambda sample: sample[0][:-1]):
            histogram.add_metric(labels, [(le, count) for (*_, le), count in buckets], None)
        return histogram
    kind = core.CounterMetricFamily if metric.kind is Kind.COUNTER else core.GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _text(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return them as UTF-8 can have them: the name of a socket may hold any byte, and one must not fail the scrape."""
    return tuple(label.encode(errors="backslashreplace").decode() for label in labels)
