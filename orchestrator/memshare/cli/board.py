# SPDX-License-Identifier: GPL-2.0-or-later
"""What `memshare top` shows, and what keys do to it. Pure: looks and keys in, rows out."""

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from memshare.cli import guests
from memshare.growth import Look, Rates, identity, rates
from memshare.model import Domain
from memshare.render import Column, Record, Unit, Value

RATE_COLUMNS = (
    Column("scanned_pages_per_second", "SCANNED/S", Unit.PER_SECOND),
    Column("merged_pages_per_second", "MERGED/S", Unit.PER_SECOND),
    Column("breaks_per_second", "BREAKS/S", Unit.PER_SECOND),
    Column("scan_cpu_ratio", "CPU", Unit.RATIO),
)
SUM_COLUMNS = (
    Column("ram_bytes", "RAM", Unit.BYTES),
    Column("shared_pages", "SHARED", Unit.PAGES),
    Column("saved_bytes", "SAVED NET", Unit.BYTES),
)
HISTORY = Column("history", "BREAKS")
REASON = Column("reason", "REASON")
GUEST_COLUMNS = (
    Column("domain", "DOMAIN"),
    Column("state", "STATE"),
    Column("group", "GROUP"),
    *SUM_COLUMNS,
    *RATE_COLUMNS,
    HISTORY,
    REASON,
)
GROUP_COLUMNS = (
    Column("group", "GROUP"),
    Column("guests", "GUESTS", Unit.COUNT),
    *SUM_COLUMNS,
    *RATE_COLUMNS,
    HISTORY,
)
HISTORY_LOOKS = 24
BARS = "▁▂▃▄▅▆▇█"
HELP = "q quit   < > or s sort column   r reverse   g by group"


def sparkline(values: Iterable[float]) -> str:
    """Draw values as bars, the highest as high as there are; nothing is a blank."""
    values = list(values)
    top = max(values, default=0)
    return "".join(
        BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] if value > 0 else " "
        for value in values
    )


def row_of(domain: Domain, rate: Rates | None) -> Record:
    """Return a guest as `list` has it, with its rates; null until there are two looks."""
    numbers = (
        dict.fromkeys(Rates.__struct_fields__) if rate is None else msgspec.structs.asdict(rate)
    )
    return {**guests.record(domain), **numbers}


class Board:
    """The looks so far, and how they are to be shown."""

    def __init__(self) -> None:
        """Show guests by name."""
        self._before: Look | None = None
        self._now: Look | None = None
        self._history: dict[tuple[str, str], deque[float]] = {}
        self._sort_key = "domain"
        self._is_reversed = False
        self.is_by_group = False
        self.is_done = False

    def see(self, look: Look) -> None:
        """Take the next look."""
        self._before, self._now = self._now, look
        found = self._rates()
        self._history = {
            key: self._history.get(key, deque(maxlen=HISTORY_LOOKS))
            for key in map(identity, look.domains)
        }
        for key, rate in found.items():
            self._history[key].append(rate.breaks_per_second)

    def press(self, key: str) -> None:
        """Do what a key says; others say nothing."""
        if key in ("q", "Q", "\x03"):
            self.is_done = True
        elif key in (">", "s"):
            self._move(1)
        elif key == "<":
            self._move(-1)
        elif key == "r":
            self._is_reversed = not self._is_reversed
        elif key == "g":
            self.is_by_group = not self.is_by_group
            if self._sort_key not in self._sortable():
                self._sort_key, self._is_reversed = self._sortable()[0], False

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns now; the one that sorts is marked."""
        mark = "▲" if self._is_ascending() else "▼"
        return tuple(
            column._replace(title=f"{column.title}{mark}")
            if column.key == self._sort_key
            else column
            for column in (GROUP_COLUMNS if self.is_by_group else GUEST_COLUMNS)
        )

    def guests(self) -> list[Record]:
        """Return a record for each guest, for programs: every key, no bars, in order of names."""
        now = self._now.domains if self._now else []
        found = self._rates()
        return [row_of(each, found.get(identity(each))) for each in now]

    def rows(self) -> list[Record]:
        """Return what people see, sorted; what is not known comes last."""
        rows = self._group_rows() if self.is_by_group else self._guest_rows()
        known = [row for row in rows if row.get(self._sort_key) is not None]
        unknown = [row for row in rows if row.get(self._sort_key) is None]
        known.sort(key=self._sort_value, reverse=not self._is_ascending())
        return known + unknown

    # What follows is the board's own.

    def _rates(self) -> Mapping[tuple[str, str], Rates]:
        return rates(self._before, self._now) if self._before and self._now else {}

    def _sortable(self) -> list[str]:
        columns = GROUP_COLUMNS if self.is_by_group else GUEST_COLUMNS
        return [column.key for column in columns if column not in (HISTORY, REASON)]

    def _move(self, steps: int) -> None:
        keys = self._sortable()
        self._sort_key = keys[(keys.index(self._sort_key) + steps) % len(keys)]
        self._is_reversed = False

    def _is_ascending(self) -> bool:
        """Texts from a, numbers from the highest, unless reversed."""
        is_text = self._sort_key in ("domain", "state", "group")
        return is_text != self._is_reversed

    def _sort_value(self, row: Record) -> tuple[float, str]:
        value = row[self._sort_key]
        return (value, "") if isinstance(value, int | float) else (0, str(value))

    def _guest_rows(self) -> list[Record]:
        now = self._now.domains if self._now else []
        found = self._rates()
        return [
            {
                **row_of(each, found.get(identity(each))),
                "history": sparkline(self._history[identity(each)]),
            }
            for each in now
        ]

    def _group_rows(self) -> list[Record]:
        found = self._rates()
        members: dict[str, list[Domain]] = {}
        for domain in self._now.domains if self._now else []:
            if domain.stats is not None:
                members.setdefault(domain.stats.group, []).append(domain)
        return [self._group_row(name, members[name], found) for name in sorted(members)]

    def _group_row(
        self, name: str, members: list[Domain], found: Mapping[tuple[str, str], Rates]
    ) -> Record:
        row: dict[str, Value] = {"group": name, "guests": len(members)}
        for column in SUM_COLUMNS:
            row[column.key] = sum(getattr(each.stats, column.key) for each in members)
        known = [found[identity(each)] for each in members if identity(each) in found]
        if known:
            row.update(msgspec.structs.asdict(sum(known[1:], known[0])))
        histories = [list(self._history[identity(each)]) for each in members]
        longest = max(map(len, histories))
        padded = [[0.0] * (longest - len(history)) + history for history in histories]
        row["history"] = sparkline(map(sum, zip(*padded, strict=True)))
        return row
