# SPDX-License-Identifier: GPL-2.0-or-later
"""One list of records in three forms."""

import csv
import io
import json

import pytest

from memshare.render import Column, Format, Record, Unit, human, human_bytes, render

COLUMNS = (Column("domain", "DOMAIN"), Column("ram_bytes", "RAM", Unit.BYTES))
RECORDS: list[Record] = [
    {"domain": "web1", "ram_bytes": 268435456, "times": [1, 2]},
    {"domain": "a [bold] name", "ram_bytes": None, "times": []},
]


def rendered(form: Format) -> str:
    file = io.StringIO()
    render("domains", COLUMNS, RECORDS, form, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 10, "1.5 MiB"),
        (268435456, "256 MiB"),
        (-(3 << 30), "-3.0 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_human_bytes(value: int, text: str) -> None:
    assert human_bytes(value) == text


def test_human_units() -> None:
    assert human(256, Unit.PAGES) == "1.0 MiB"
    assert human(1_500_000_000, Unit.NANOSECONDS) == "1.50 s"
    assert human(None, Unit.BYTES) == "-"
    assert human("", Unit.TEXT) == "-"
    assert human(2.345, Unit.TIMES) == "2.35x"
    assert human(85, Unit.MICROSECONDS) == "85 us"
    assert human(1234, Unit.MICROSECONDS) == "1.2 ms"
    assert human(99_000, Unit.MICROSECONDS) == "99 ms"
    assert human(0.25, Unit.SECONDS) == "0.25 s"
    assert human(-12.34, Unit.SECONDS) == "-12.3 s"
    assert human(240.4, Unit.SECONDS) == "240 s"


def test_json_is_exact_and_has_a_schema() -> None:
    assert json.loads(rendered(Format.JSON)) == {"schema": 1, "domains": [dict(r) for r in RECORDS]}


def test_csv_is_exact() -> None:
    rows = list(csv.DictReader(io.StringIO(rendered(Format.CSV))))
    assert rows[0] == {"domain": "web1", "ram_bytes": "268435456", "times": "1 2"}
    assert rows[1]["ram_bytes"] == ""


def test_csv_of_nothing_has_a_heading() -> None:
    file = io.StringIO()
    render("domains", COLUMNS, [], Format.CSV, file)
    assert file.getvalue().strip() == "domain,ram_bytes"


def test_table_shows_units_and_takes_no_markup_from_names() -> None:
    table = rendered(Format.TABLE)
    assert "256 MiB" in table
    assert "a [bold] name" in table
    assert "\x1b" not in table
