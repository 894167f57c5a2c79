# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/metrics.md, from the table."""

from collections.abc import Iterable

from memshare.metrics import group, guest, host
from memshare.metrics.metric import Metric

HEAD = """\
<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- Made by `.venv/bin/python -m memshare.metrics document`: change orchestrator/memshare/metrics instead. -->
# Metrics

`memshare daemon` answers Prometheus on 127.0.0.1, port 9843; `[metrics]` in its configuration has `address` and
`port`, and port 0 turns it off. There is neither encryption nor a password: names and figures of all guests are told to whoever
can reach the port.

    scrape_configs:
      - job_name: memshare            # the alert rules know it by this name
        static_configs:
          - targets: [localhost:9843]
    rule_files:
      - /usr/share/memshare/prometheus/memshare.rules.yml

Alert rules are in `packaging/prometheus/memshare.rules.yml`, a Grafana dashboard is `packaging/grafana/memshare.json`.

A scrape tells what the daemon saw at its last look and asks no guest; the figures of a guest that is late are those of
its last answer. Before the first look there are `memshare_build_info` and `memshare_up` only. Label `domain` is the
guest's name, and the only one that says which guest it is; facts about it are labels of `memshare_domain_info`:

    sum by (group) (
      memshare_domain_ram_bytes * on (instance, domain) group_left (group) memshare_domain_info
    )

Counters are those of a guest's engine or of the broker, and begin anew with it. The last column has what an operator of
KSM knows as the same thing or the nearest: a file of `/sys/kernel/mm/ksm` or `/proc/PID/ksm_stat`, unless it says
otherwise.
"""


def document() -> str:
    """Return the page."""
    parts = {"The host": host.METRICS, "Groups": group.METRICS, "Guests": guest.METRICS}
    return HEAD + "".join(_part(title, metrics) for title, metrics in parts.items())


def _part(title: str, metrics: Iterable[Metric]) -> str:
    rows = "".join(
        f"| `{metric.name}` | {metric.kind} | {' '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} | {metric.ksm} |\n"
        for metric in metrics
    )
    return (
        f"\n## {title}\n\n| name | kind | labels | meaning | KSM |\n|---|---|---|---|---|\n{rows}"
    )
