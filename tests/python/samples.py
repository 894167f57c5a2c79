# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that several tests share."""

import re
from pathlib import Path
from typing import Any

import msgspec

from memshare.daemon.view import View
from memshare.model import Broker, Domain, Group, PageStats
from memshare.policy import Config, Guest, Host, Snapshot, State, decide

ROOT = Path(__file__).parents[2]


def stats(**changes: Any) -> dict[str, Any]:
    """What a plugin answers for `stats`; DESIGN's names, spelled out so that a change is noticed."""
    answer: dict[str, Any] = {
        "version": "0.1.0",
        "protocol": "1",
        "state": "running",
        "refusal": "",
        "group": "demo",
        "mode": "content",
        "window_time_ns": [0] * 24,
    }
    for name in (
        "scan_rate_pages cpu_limit_percent ram_bytes present_pages shared_pages broken_pages zero_pages "
        "unique_pages volatile_pages tracked_pages saved_content_bytes saved_zero_bytes overhead_bytes scanned_pages "
        "skipped_pages changed_pages hashed_pages merged_pages zeroed_pages breaks rebuilt_pages compare_failures "
        "pinned_skips scan_cpu_ns windows slept_faults mappings mappings_limit passes pass_age_ns"
    ).split():
        answer[name] = 0
    return answer | changes


def names_in_stats_header() -> list[str]:
    """The fields of MshStats, in order."""
    text = (ROOT / "qemu-plugin/include/memshare/stats.h").read_text()
    body = re.sub(
        r"/\*.*?\*/", "", text[text.index("typedef struct MshStats {") :], flags=re.DOTALL
    )
    body = body[: body.index("} MshStats;")]
    return re.findall(r"(\w+)(?:\[\w+\])?;", body)


def view(seconds: float = 100.0, **changes: Any) -> View:
    """What the daemon tells of a host with two guests that share, one without an engine, and a broker.

    All counters are twice as far at twice the time. The host's clock was 0 at 1000 seconds of its day.
    """
    count = int(seconds)
    figures = {
        "ram_bytes": 1 << 30,
        "present_pages": 200_000,
        "shared_pages": 1000,
        "zero_pages": 500,
        "unique_pages": 7,
        "volatile_pages": 8,
        "broken_pages": 9,
        "tracked_pages": 100,
        "saved_content_bytes": 3_000_000,
        "saved_zero_bytes": 2_000_000,
        "overhead_bytes": 1_000_000,
        "scan_rate_pages": 5000,
        "cpu_limit_percent": 50,
        "mappings": 900,
        "mappings_limit": 52_424,
        "pass_age_ns": 3 * 10**9,
        "window_time_ns": [0, 0, 0, 0, 0, 0, count, 2 * count, *[0] * 15, count],
        **dict.fromkeys(
            ("scanned_pages", "hashed_pages", "merged_pages", "zeroed_pages", "breaks"), 10 * count
        ),
        **dict.fromkeys(("rebuilt_pages", "compare_failures", "pinned_skips"), count),
        "scan_cpu_ns": count * 10**8,
        "slept_faults": count,
        "passes": count,
        "windows": 4 * count,
    }
    web1 = msgspec.convert(stats(**figures), PageStats)
    unlimited = {
        "scan_rate_pages": (1 << 64) - 1,
        "cpu_limit_percent": 0,
        "refusal": "RAM is locked",
    }
    web2 = msgspec.convert(stats(**{**figures, **unlimited}), PageStats)
    taken_ns = int(seconds * 1e9)
    snapshot = Snapshot(
        taken_ns=taken_ns,
        host=Host(
            cpus=4.0,
            total_bytes=16 << 30,
            available_bytes=8 << 30,
            psi_some_ns=taken_ns // 100,
            psi_full_ns=taken_ns // 200,
            swapped_in_pages=count,
        ),
        guests=(
            Guest(domain="web1", taken_ns=taken_ns, stats=web1, balloon_bytes=1 << 29),
            Guest(domain="web2", taken_ns=taken_ns - 10**9, stats=web2, is_held=True),
        ),
    )
    group = Group(
        name="demo",
        socket="/run/memshare/demo.sock",
        members=2,
        segments=1,
        store_bytes=1100 * 4096,
        slots_live=1000,
        slots_dead=60,
        grants=2000,
        table_entries=5000,
        table_bytes=400_000,
        sightings=50 * count,
        provides=count,
        rejected_provides=count,
        matches=count,
        releases=count,
        bad_releases=count,
        refused_full=count,
        sessions=[],
    )
    told = View(
        taken_seconds=1000.0 + seconds,
        domains=(
            Domain(name="web1", uuid="a-b-c", source="qemu:///system", stats=web1),
            Domain(name="web2", group="demo", problem="does not answer", answered=False),
            Domain(name="plain", source="/run/memshare/qmp", problem="runs without memshare"),
        ),
        snapshot=snapshot,
        decision=decide(snapshot, State(), Config()),
        broker=Broker(version="0.1.0", protocol=1, pid=7, groups=[group]),
        actions={"SetRate": count},
    )
    return msgspec.structs.replace(told, **changes)


def group(**changes: Any) -> dict[str, Any]:
    """What the broker tells of a group in `status`."""
    answer: dict[str, Any] = {"name": "demo", "socket": "/run/memshare/demo.sock", "sessions": []}
    for name in (
        "members segments store_bytes slots_live slots_dead grants table_entries table_bytes sightings "
        "provides rejected_provides matches releases bad_releases refused_full"
    ).split():
        answer[name] = 0
    return answer | changes


def session(**changes: Any) -> dict[str, Any]:
    """What the broker tells of a session."""
    answer = {"guest": "web1", "state": "active", "pid": 9, "uid": 0, "grants": 0, "cost_bytes": 0}
    return answer | changes
