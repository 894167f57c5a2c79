# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Prometheus, as Debian has it: scrapes, knows every series, understands rules and dashboard."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memshare.metrics.table import METRICS
from samples import ROOT, view
from test_metrics import DASHBOARD, RULES, page, served

pytestmark = pytest.mark.full_hash  # pages have no part in it: once is enough

DEADLINE_SECONDS = 120.0
CONFIG = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: memshare
    static_configs: [{{targets: ["{target}"]}}]
"""


def promtool(*arguments: str, text: str | None = None) -> str:
    """Run promtool; the test fails with its words."""
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_a_scrape() -> None:
    assert promtool("check", "metrics", text=page(view())) == ""


def test_promtool_understands_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_alerts_fire_when_they_should() -> None:
    cases = ROOT / "tests/python/alerts.test.yml"
    promtool("test", "rules", str(cases))
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert alerts == set(re.findall(r'alertname="(\w+)"', cases.read_text()))


class Prometheus:
    """One that runs, on a port of its own choice."""

    def __init__(self, address: str) -> None:
        self._api = f"http://{address}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer; raises ValueError with Prometheus's words for a query that is wrong."""
        url = f"{self._api}/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[Any]:
        """The series that a query has now."""
        series: list[Any] = self.get("query", query=expr)["result"]
        return series


def until(condition: Callable[[], Any], what: str) -> Any:
    """Look again and again until there is something; return it."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not (seen := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes guests whose counters grow by the second."""
    folder = tmp_path_factory.mktemp("prometheus")
    config, log = folder / "prometheus.yml", folder / "log"
    start = time.monotonic()
    with (
        served(lambda: view(seconds=100 + time.monotonic() - start)) as url,
        log.open("w") as output,
    ):
        target = urllib.parse.urlparse(url).netloc
        config.write_text(CONFIG.format(rules=RULES, target=target))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=output,
            stderr=output,
        )
        try:
            yield Prometheus(until(lambda: address_in(log, process), "Prometheus listens"))
        finally:
            process.terminate()
            process.wait()


def address_in(log: Path, process: subprocess.Popen[bytes]) -> str | None:
    """Where it listens, once it answers."""
    text = log.read_text()
    assert process.poll() is None, text
    found = re.search(r'msg="Listening on" address=(\S+)', text)
    return found[1] if found and "Server is ready" in text else None


def test_every_metric_is_scraped(prometheus: Prometheus) -> None:
    assert until(lambda: prometheus.query('up{job="memshare"} == 1'), "a scrape")
    names = {
        name for name in prometheus.get("label/__name__/values") if name.startswith("memshare")
    }
    assert names == {metric.series for metric in METRICS}
    told = prometheus.get("metadata")
    for metric in METRICS:
        family = metric.name.removesuffix("_total")  # OpenMetrics calls it so
        assert told[family][0]["type"] == metric.kind, metric.name


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            series = until(lambda expr=expr: prometheus.query(expr), f"figures of {expr}")
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert legend <= series[0]["metric"].keys(), target


def test_rules_are_loaded_and_tell_what_to_do(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("rules")["groups"]
    for rule in group["rules"]:
        assert rule["annotations"].keys() == {"summary", "description"}, rule["name"]
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["name"]
    until(
        lambda: all(r["health"] == "ok" for r in prometheus.get("rules")["groups"][0]["rules"]),
        "each rule was evaluated",
    )
    # web2 of the samples refuses; the alert waits a while before it fires.
    alert = until(
        lambda: [
            a for a in prometheus.get("alerts")["alerts"] if "Refused" in a["labels"]["alertname"]
        ],
        "an alert",
    )[0]
    assert alert["labels"]["domain"] == "web2"
    assert "guest web2 on 127.0.0.1" in alert["annotations"]["summary"]
