# SPDX-License-Identifier: GPL-2.0-or-later
"""Grafana's dashboard: a table of panels, and the JSON that Grafana imports."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

HOST = '{instance=~"$instance"}'
PAGES_A_SECOND = "suffix: pages/s"
COLUMNS = 3
GRID = (8, 24 // COLUMNS)  # height and width of a panel, in Grafana's units

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(msgspec.Struct, frozen=True):
    """Curves over time. queries are by legend, unit is Grafana's word for it."""

    title: str
    unit: str
    queries: Mapping[str, str]
    is_stacked: bool = False


def _rate(name: str) -> str:
    return f"rate({name}{HOST}[$__rate_interval])"


PANELS = (
    Panel(
        "Saved by kind, costs not taken off",
        "bytes",
        {"{{kind}}": f"sum by (kind) (memshare_domain_saved_bytes{HOST})"},
        is_stacked=True,
    ),
    Panel(
        "Saved by group, net",
        "bytes",
        {"{{group}}": f"sum by (group) (memshare_saved_bytes{HOST})"},
        is_stacked=True,
    ),
    Panel(
        "What sharing costs",
        "bytes",
        {
            "engines and broker": f"sum(memshare_metadata_bytes{HOST})",
            "dead slots": 'sum(memshare_store_bytes{instance=~"$instance", state="dead"})',
        },
    ),
    Panel(
        "Headroom and reserve",
        "bytes",
        {
            "{{instance}} headroom": f"memshare_headroom_bytes{HOST}",
            "{{instance}} reserve": f"memshare_reserve_bytes{HOST}",
            "{{instance}} if all wrote to all": f"memshare_unshare_bytes{HOST}",
        },
    ),
    Panel("Urgency", "percentunit", {"{{instance}}": f"memshare_policy_urgency_ratio{HOST}"}),
    Panel(
        "Guard: 1 full speed, 2 balloons, 3 hook",
        "none",
        {"{{instance}}": f"memshare_guard_step{HOST}"},
    ),
    Panel(
        "Tasks waiting for memory",
        "percentunit",
        {"{{instance}} {{kind}}": _rate("memshare_memory_stalled_seconds_total")},
    ),
    Panel(
        "Came back into use",
        "binBps",
        {"{{instance}}": f"memshare_break_bytes_per_second{HOST}"},
    ),
    Panel(
        "Actions",
        "ops",
        {"{{action}}": f"sum by (action) ({_rate('memshare_policy_actions_total')})"},
    ),
    Panel(
        "CPU of scanning, and its budget",
        "suffix: CPUs",
        {
            "{{instance}}": f"sum by (instance) ({_rate('memshare_scan_cpu_seconds_total')})",
            "{{instance}} budget": f"memshare_policy_budget_cpus{HOST}",
        },
    ),
    Panel(
        "Scan rate in force",
        PAGES_A_SECOND,
        {"{{domain}}": f"topk(20, memshare_domain_scan_rate_pages{HOST})"},
    ),
    Panel(
        "What scanning is worth",
        "percentunit",
        {"{{domain}}": f"topk(20, memshare_domain_scan_value_ratio{HOST})"},
    ),
    Panel(
        "Shared memory of guests",
        "bytes",
        {"{{domain}}": f"topk(20, sum by (domain) (memshare_domain_shared_bytes{HOST}))"},
    ),
    Panel(
        "Pages shared",
        PAGES_A_SECOND,
        {"{{kind}}": f"sum by (kind) ({_rate('memshare_domain_shares_total')})"},
    ),
    Panel(
        "Breaks",
        PAGES_A_SECOND,
        {"{{domain}}": f"topk(20, {_rate('memshare_domain_breaks_total')})"},
    ),
    Panel(
        "Windows, 99% are shorter",
        "s",
        {
            "{{domain}}": "topk(5, histogram_quantile(0.99, "
            f"sum by (domain, le) ({_rate('memshare_window_duration_seconds_bucket')})))"
        },
    ),
    Panel(
        "Mappings, of the limit",
        "percentunit",
        {
            "{{domain}}": f"topk(5, memshare_domain_mappings{HOST} / memshare_domain_mappings_limit{HOST})"
        },
    ),
    Panel(
        "Guests by state",
        "none",
        {"{{state}}": f"count by (state) (memshare_domain_info{HOST})"},
        is_stacked=True,
    ),
)


def dashboard() -> str:
    """Return the file."""
    model = {
        "title": "memshare",
        "uid": "memshare",
        "tags": ["memshare"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_source_choice(), _instance_choice()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(model, indent=1) + "\n"


def _source_choice() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }


def _instance_choice() -> dict[str, Any]:
    query = "label_values(memshare_build_info, instance)"
    return {
        "name": "instance",
        "label": "host",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "instance"},
        "refresh": 2,  # when the time range changes: hosts come and go
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    height, width = GRID
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.is_stacked else {}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {
            "h": height,
            "w": width,
            "x": number % COLUMNS * width,
            "y": number // COLUMNS * height,
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": custom},
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend,
            }
            for position, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
