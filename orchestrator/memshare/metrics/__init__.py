# SPDX-License-Identifier: GPL-2.0-or-later
"""What Prometheus is told of a host: one table of metrics, from which everything else is made.

    metric.py             what a metric is
    host.py group.py guest.py    the table, a part each: name, kind, labels, meaning, and how a View has it
    table.py              all of it
    endpoint.py           `serve`: the table of the daemon's latest View over HTTP
    document.py           the table as docs/metrics.md
    dashboard.py          Grafana's dashboard, packaging/grafana/memshare.json

Alert rules are packaging/prometheus/memshare.rules.yml. `python -m memshare.metrics document` and `dashboard` print
the two files that are made; a test holds them, and each name in dashboard and rules, against the table.

What always holds: base units (bytes, seconds, ratios 0 to 1), counters end in `_total`. A guest is label
`domain` alone, so that other exporters' series join `on (domain)`; facts about it that are words are on
memshare_domain_info only. No label holds a pid, a page, or a text that can be anything.
"""
