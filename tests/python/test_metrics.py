# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of metrics; what is scraped, documented, drawn and alerted on are held against it."""

import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from memshare.daemon.view import View
from memshare.errors import HostError
from memshare.metrics import endpoint
from memshare.metrics.dashboard import dashboard
from memshare.metrics.document import document
from memshare.metrics.endpoint import ViewCollector, serve
from memshare.metrics.metric import Kind
from memshare.metrics.table import METRICS
from memshare.model import Domain
from samples import ROOT, names_in_stats_header, view

RULES = ROOT / "packaging/prometheus/memshare.rules.yml"
DASHBOARD = ROOT / "packaging/grafana/memshare.json"
SERIES = {metric.series: metric for metric in METRICS}

Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextmanager
def served(look: Callable[[], View | None]) -> Iterator[str]:
    """The address of an endpoint."""
    server = serve("127.0.0.1", 0, look)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def page(seen: View | None) -> str:
    """What a scrape reads."""
    registry = CollectorRegistry()
    registry.register(ViewCollector(lambda: seen))
    return generate_latest(registry).decode()


def scrape(seen: View | None) -> Scraped:
    """All samples by name and labels; a series that comes twice is an error, as it is to Prometheus."""
    samples: Scraped = {}
    for family in text_string_to_metric_families(page(seen)):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def figure(samples: Scraped, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"memshare(_[a-z]+)+", metric.name)
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total"), metric.name
        assert not re.search(r"_(ns|ms|us|mib|kib|percent|count)(_|$)", metric.name), metric.name
        assert not {"pid", "page", "hash", "frame"} & set(metric.labels), metric.name
        assert metric.help.endswith("."), metric.name
        assert ("domain" in metric.labels) or not metric.name.startswith("memshare_domain_")


def test_every_metric_is_told_under_its_labels() -> None:
    told: dict[str, set[frozenset[str]]] = {}
    for name, labels in scrape(view()):
        told.setdefault(name, set()).add(frozenset(label for label, _ in labels))
    assert told == {name: {frozenset(metric.labels)} for name, metric in SERIES.items()}


def test_every_figure_of_a_guest_is_told() -> None:
    """Words are labels or for `status`, the number of windows is a bucket."""
    words = {"version", "protocol", "state", "refusal", "group", "mode", "windows"}
    before = view()
    guests = before.snapshot.guests
    told = [list(metric.read(before)) for metric in METRICS]
    for name in set(names_in_stats_header()) - words:
        old = getattr(guests[0].stats, name)
        new = [2 * n for n in old] if isinstance(old, list) else 2 * old + 1
        stats = msgspec.structs.replace(guests[0].stats, **{name: new})
        web1 = msgspec.structs.replace(guests[0], stats=stats)
        snapshot = msgspec.structs.replace(before.snapshot, guests=(web1, *guests[1:]))
        after = msgspec.structs.replace(before, snapshot=snapshot)
        assert [list(metric.read(after)) for metric in METRICS] != told, name


def test_figures() -> None:
    samples = scrape(view(seconds=100))
    of = {"domain": "web1"}
    assert figure(samples, "memshare_domain_shared_bytes", kind="content", **of) == 1000 * 4096
    assert figure(samples, "memshare_domain_shared_bytes", kind="zero", **of) == 500 * 4096
    assert figure(samples, "memshare_domain_breaks_total", reason="write", **of) == 1000
    assert figure(samples, "memshare_scan_cpu_seconds_total", **of) == pytest.approx(10)
    assert figure(samples, "memshare_domain_cpu_limit_ratio", **of) == 0.5
    assert figure(samples, "memshare_domain_last_pass_timestamp_seconds", **of) == 1097
    assert figure(samples, "memshare_domain_balloon_bytes", **of) == 1 << 29
    assert figure(samples, "memshare_store_bytes", group="demo", state="free") == 40 * 4096
    assert figure(samples, "memshare_metadata_bytes", group="demo") == 2 * 1_000_000 + 400_000
    assert figure(samples, "memshare_saved_bytes", group="demo") == 2 * 4_000_000 - 400_000
    assert figure(samples, "memshare_unshare_bytes") == 2 * 1500 * 4096
    assert figure(samples, "memshare_memory_stalled_seconds_total", kind="some") == 1
    assert figure(samples, "memshare_policy_last_run_timestamp_seconds") == 1100
    assert figure(samples, "memshare_policy_actions_total", action="SetRate") == 100
    assert figure(samples, "memshare_policy_actions_total", action="RunHook") == 0


def test_what_is_not_there_is_not_zero() -> None:
    samples = scrape(view())
    assert ("memshare_domain_balloon_bytes", frozenset({("domain", "web2")})) not in samples
    assert ("memshare_domain_ram_bytes", frozenset({("domain", "plain")})) not in samples


def test_no_limit_is_infinite() -> None:
    samples = scrape(view())
    assert figure(samples, "memshare_domain_scan_rate_pages", domain="web2") == float("inf")
    assert figure(samples, "memshare_domain_cpu_limit_ratio", domain="web2") == float("inf")


def test_a_guest_that_is_late_and_one_without_an_engine() -> None:
    samples = scrape(view(seconds=100))
    facts = [dict(labels) for name, labels in samples if name == "memshare_domain_info"]
    infos = {fact["domain"]: fact for fact in facts}
    assert infos["web1"]["state"] == "running"
    assert infos["web1"]["uuid"] == "a-b-c"
    assert infos["web2"]["state"] == "unreachable"
    assert infos["web2"]["group"] == "demo"
    assert infos["plain"]["state"] == "not-sharing"
    up = [figure(samples, "memshare_domain_up", domain=name) for name in ("web1", "web2", "plain")]
    assert up == [1, 0, 1]
    late = figure(samples, "memshare_domain_last_answer_timestamp_seconds", domain="web2")
    assert late == 1099
    assert figure(samples, "memshare_domain_refused", domain="web2") == 1
    assert figure(samples, "memshare_domain_held", domain="web2") == 1


def test_windows_are_cumulative_and_the_last_bucket_is_open() -> None:
    samples = scrape(view(seconds=100))
    counts = {
        dict(labels)["le"]: value
        for (name, labels), value in samples.items()
        if name == "memshare_window_duration_seconds_bucket" and ("domain", "web1") in labels
    }
    assert counts["1e-06"] == 0
    assert counts["6.4e-05"] == 100
    assert counts["0.000128"] == 300
    assert counts["4.194304"] == 300
    assert counts["+Inf"] == 400
    assert len(counts) == 24


def test_before_the_first_look_parts_are_down() -> None:
    samples = scrape(None)
    assert {name for name, _ in samples} == {"memshare_build_info", "memshare_up"}
    assert figure(samples, "memshare_up", component="daemon") == 0


def test_a_broker_that_does_not_answer_is_down() -> None:
    assert figure(scrape(view()), "memshare_up", component="broker") == 1
    samples = scrape(view(broker=None))
    assert figure(samples, "memshare_up", component="broker") == 0
    assert figure(samples, "memshare_up", component="daemon") == 1
    assert figure(samples, "memshare_saved_bytes", group="demo") == 8_000_000


def test_a_scrape_tells_the_view_of_its_moment() -> None:
    views = iter([None, view(seconds=1), view(seconds=2)])
    with served(lambda: next(views)) as url:
        pages = [urllib.request.urlopen(url, timeout=60).read().decode() for _ in range(3)]
    found = [re.findall(r"^memshare_swapped_in_bytes_total (\S+)$", text, re.M) for text in pages]
    assert found == [[], ["4096.0"], ["8192.0"]]


@pytest.mark.parametrize(
    "name", ['a"b\\c\nd', "größe", b"\xff.qmp".decode(errors="surrogateescape")]
)
def test_a_guest_may_have_any_name(name: str) -> None:
    samples = scrape(view(domains=(Domain(name=name, problem="runs without memshare"),)))
    shown = name.encode(errors="backslashreplace").decode()
    assert figure(samples, "memshare_domain_up", domain=shown) == 1


def test_an_address_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            HostError, match=f"^metrics: 127.0.0.1 port {port}: address already in use$"
        ):
            serve("127.0.0.1", port, lambda: None)


def test_an_address_that_is_none_is_one_clear_line() -> None:
    with pytest.raises(HostError, match=r"^metrics: nowhere\.invalid port 0: [^\n]+$"):
        serve("nowhere.invalid", 0, lambda: None)


def connected(url: str) -> socket.socket:
    """A connection over which nothing is asked."""
    return socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), 30)


def test_a_client_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint.Handler.timeout == endpoint.IDLE_SECONDS
    monkeypatch.setattr(endpoint.Handler, "timeout", 0.01)
    with served(lambda: None) as url:
        for _ in range(endpoint.CLIENTS_MAX + 1):
            with connected(url) as client:
                assert client.recv(1) == b""


def test_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.Handler, "timeout", None)
    with served(lambda: None) as url:
        clients = [connected(url) for _ in range(endpoint.CLIENTS_MAX)]
        with connected(url) as one_too_many:
            assert one_too_many.recv(1) == b""
        clients[0].shutdown(socket.SHUT_WR)
        assert clients[0].recv(1) == b"", "it is done, and has made room"
        assert b"memshare_up" in urllib.request.urlopen(url, timeout=60).read()
        for client in clients:
            client.close()


def test_ipv6() -> None:
    server = serve("::1", 0, view)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("made", "kept"), [(document, ROOT / "docs/metrics.md"), (dashboard, DASHBOARD)]
)
def test_files_that_are_made_from_the_table_are_current(
    made: Callable[[], str], kept: Path
) -> None:
    assert kept.read_text() == made(), f"python -m memshare.metrics {made.__name__} >{kept}"


def test_document_has_each_metric_once() -> None:
    rows = re.findall(r"^\| `(memshare_\w+)` \|", document(), re.M)
    assert rows == [metric.name for metric in METRICS]


def queries() -> dict[str, str]:
    """Every query there is, by where it is."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = {
        f"{panel['title']}: {target['refId']}": target["expr"]
        for panel in panels
        for target in panel["targets"]
    }
    rules = re.sub(r"^ *#.*$", "", RULES.read_text(), flags=re.M)
    parts = re.split(r"- alert: (\w+)", rules)[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        found[name] = text[: text.index("labels:")]
    return found


@pytest.mark.parametrize("query", queries().values(), ids=queries().keys())
def test_names_in_queries_are_in_the_table(query: str) -> None:
    names = re.findall(r"\bmemshare_\w+", query)
    assert names or "up{" in query
    assert set(names) <= SERIES.keys()
    for name, matchers in re.findall(r"\b(memshare_\w+)\{([^}]*)\}", query):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert labels <= {*SERIES[name].labels, "instance", "job"}, name
    for name in re.findall(r"\brate\((\w+)", query):
        assert SERIES[name].kind is not Kind.GAUGE, name


def test_labels_in_texts_of_alerts_are_of_their_metrics() -> None:
    parts = re.split(r"- alert: (\w+)", RULES.read_text())[1:]
    for alert, text in zip(parts[::2], parts[1::2], strict=True):
        used = set(re.findall(r"\$labels\.(\w+)", text)) - {"instance"}
        names = re.findall(r"\bmemshare_\w+", text[: text.index("labels:")])
        assert used <= {label for name in names for label in SERIES[name].labels}, alert


def test_panels() -> None:
    panels = json.loads(dashboard())["panels"]
    places = set()
    for panel in panels:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert all(target["legendFormat"] for target in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.add((place["x"], place["y"]))
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)


def test_commands_do_not_wait_for_the_prometheus_client() -> None:
    code = "import memshare.cli.status, sys; assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
