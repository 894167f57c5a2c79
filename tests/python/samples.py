# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that several tests share."""

import re
from pathlib import Path
from typing import Any

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
        "hashed_pages merged_pages zeroed_pages breaks rebuilt_pages compare_failures pinned_skips "
        "scan_cpu_ns windows slept_faults mappings mappings_limit passes pass_age_ns"
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
