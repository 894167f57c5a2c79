# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots hold what the C side reports, and survive a newer plugin."""

import msgspec
import pytest

from memshare.model import PageStats
from samples import names_in_stats_header, stats


def test_page_stats_has_the_fields_of_the_c_struct() -> None:
    assert list(PageStats.__struct_fields__) == names_in_stats_header()


def test_page_stats_ignores_what_a_newer_plugin_adds() -> None:
    assert msgspec.convert(stats(brand_new_pages=7), PageStats).ram_bytes == 0


@pytest.mark.parametrize("field", ["ram_bytes", "window_time_ns", "state"])
def test_page_stats_refuses_a_missing_field(field: str) -> None:
    answer = stats()
    del answer[field]
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(answer, PageStats)


def test_saved_is_net_of_overhead() -> None:
    figures = stats(saved_content_bytes=100, saved_zero_bytes=20, overhead_bytes=130)
    assert msgspec.convert(figures, PageStats).saved_bytes == -10
