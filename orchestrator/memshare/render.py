# SPDX-License-Identifier: GPL-2.0-or-later
"""One list of records to a table, JSON or CSV. The only place with human units.

Tables are for people: they may change and they round. JSON and CSV are for programs: exact integers,
the unit in each key, and `schema` in JSON says when a key's meaning changed.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1

Value = int | float | str | list[int] | None
Record = Mapping[str, Value]


class Format(StrEnum):
    """What a reading command can print."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Unit(StrEnum):
    """How a table shows a value."""

    TEXT = "text"
    COUNT = "count"
    BYTES = "bytes"
    PAGES = "pages"
    NANOSECONDS = "nanoseconds"
    PER_SECOND = "per second"
    RATIO = "ratio"
    TIMES = "times"
    SECONDS = "seconds"
    MICROSECONDS = "microseconds"


class Column(NamedTuple):
    """A key of the records, its heading, and how a table shows it."""

    key: str
    title: str
    unit: Unit = Unit.TEXT


def human_bytes(value: int) -> str:
    """Bytes with a binary prefix and at least two significant digits: `0 B`, `1.5 MiB`, `256 MiB`."""
    amount = float(abs(value))
    sign = "-" if value < 0 else ""
    for prefix in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            digits = 0 if prefix == "B" or amount >= 99.95 else 1
            return f"{sign}{amount:.{digits}f} {prefix}"
        amount /= 1024
    return f"{sign}{amount:.1f} TiB"


def human_seconds(value: float) -> str:
    """Seconds with two to three significant digits: `85 us`, `1.2 ms`, `0.25 s`, `12.3 s`, `240 s`."""
    amount = abs(value)
    if 0 < amount < 0.0995:
        factor, unit = (1e6, "us") if amount < 0.000995 else (1e3, "ms")
        return f"{value * factor:.{0 if unit == 'us' or amount * factor >= 9.95 else 1}f} {unit}"
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{value:.{digits}f} s"


def human(value: Value, unit: Unit) -> str:
    """Return what a table shows; an absent value is a dash."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value or "-"
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if unit is Unit.BYTES:
        return human_bytes(int(value))
    if unit is Unit.PAGES:
        return human_bytes(int(value) * 4096)
    if unit is Unit.NANOSECONDS:
        return f"{value / 1e9:.2f} s"
    if unit is Unit.PER_SECOND:
        return f"{value:.0f}" if abs(value) >= 9.95 or value == 0 else f"{value:.1f}"
    if unit is Unit.RATIO:
        return f"{value:.1%}"
    if unit is Unit.TIMES:
        return f"{value:.2f}x"
    if unit is Unit.SECONDS:
        return human_seconds(value)
    if unit is Unit.MICROSECONDS:
        return human_seconds(value / 1e6)
    return str(value)


def render(
    name: str,
    columns: Sequence[Column],
    records: Sequence[Record],
    form: Format,
    file: TextIO,
) -> None:
    """Print the records. Tables show the columns; JSON and CSV hold every key.

    name is the key of the list in JSON, for instance `domains`.
    """
    if form is Format.JSON:
        render_json({name: [dict(record) for record in records]}, file)
    elif form is Format.CSV:
        keys = list(dict.fromkeys(key for record in records for key in record))
        render_csv(keys or [column.key for column in columns], records, file)
    else:
        render_table(columns, records, file)


def render_json(document: Mapping[str, object], file: TextIO, *, is_one_line: bool = False) -> None:
    """Print one JSON object of the current schema."""
    json.dump({"schema": SCHEMA, **document}, file, indent=None if is_one_line else 2)
    file.write("\n")


def render_csv(
    keys: Sequence[str], records: Sequence[Record], file: TextIO, *, has_heading: bool = True
) -> None:
    """Print records as CSV, with a heading or as its continuation."""
    writer = csv.DictWriter(file, keys, restval="")
    if has_heading:
        writer.writeheader()
    writer.writerows(
        {
            key: human(value, Unit.COUNT) if isinstance(value, list) else value
            for key, value in record.items()
        }
        for record in records
    )


def table_of(columns: Sequence[Column], records: Sequence[Record]) -> "Table":
    """Return a table; names and reasons in it are data: no markup, no emoji."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            column.title, justify="left" if column.unit is Unit.TEXT else "right", no_wrap=True
        )
    for record in records:
        table.add_row(*(Text(human(record.get(column.key), column.unit)) for column in columns))
    return table


def render_table(columns: Sequence[Column], records: Sequence[Record], file: TextIO) -> None:
    """Print a table as wide as its contents, so that lines never wrap when piped."""
    from rich.console import Console

    width = None if file.isatty() else 1000
    Console(file=file, width=width, markup=False, emoji=False).print(table_of(columns, records))
