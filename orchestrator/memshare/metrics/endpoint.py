# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics over HTTP. Each scrape is answered from one View, so that its figures belong together.

Scrapes run in threads of the server's own. They read what the daemon has seen anyway: no guest is asked because
somebody scrapes, and a scraper that hangs holds nobody up. It is given up after a while, and there are not many at
a time: whoever opens connections and leaves them must not take all threads and descriptors of the daemon.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, core, make_wsgi_app
from prometheus_client.registry import Collector

from memshare.daemon.view import View
from memshare.errors import HostError
from memshare.metrics.metric import Kind, Metric, Sample
from memshare.metrics.table import METRICS

Look = Callable[[], View | None]

CLIENTS_MAX = 16
IDLE_SECONDS = 5.0


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


class Handler(WSGIRequestHandler):
    """Answers one scrape. What is scraped is not logged."""

    timeout = IDLE_SECONDS

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingMixIn, WSGIServer):
    """Has a thread for each of CLIENTS_MAX connections; one too many is closed."""

    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        """Listen; OSError."""
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, where = found[0]
        self._free = threading.BoundedSemaphore(CLIENTS_MAX)
        super().__init__((str(where[0]), port), Handler)

    def verify_request(self, _request: Any, _client: Any) -> bool:
        """Say whether there is a place for one more."""
        return self._free.acquire(blocking=False)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer, and be free for the next."""
        try:
            super().finish_request(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless the client said nothing or hung up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def serve(address: str, port: int, look: Look) -> WSGIServer:
    """Listen for scrapes, in a thread; port 0 takes any that is free, `server_port` tells which.

    Raises HostError when the address cannot be had. Whoever calls this ends it by `shutdown` and `server_close`.
    """
    registry = CollectorRegistry()
    registry.register(ViewCollector(look))
    try:
        server = Server(address, port)
    except OSError as error:
        raise HostError(
            f"metrics: {address} port {port}: {(error.strerror or str(error)).lower()}",
            "see `address` and `port` of [metrics] in the configuration",
        ) from error
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
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
