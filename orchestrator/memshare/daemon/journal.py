# SPDX-License-Identifier: GPL-2.0-or-later
"""How the daemon logs: one line a decision on stderr, `event key=value ...`, or JSON.

Without a time of its own where the journal adds one.
"""

import os
import sys
from typing import Any

import structlog

from memshare.clients.sources import printable

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def _printable(_logger: object, _method: str, line: str) -> str:
    """Keep what guests and others say from being more than text on whoever's terminal."""
    return printable(line)


def set_up(*, json: bool, level: str = "info") -> None:
    """Set structlog up for the whole process."""
    processors: list[Any] = [structlog.processors.add_log_level]
    keys = ["level", "event"]
    if json or "JOURNAL_STREAM" not in os.environ:
        keys.insert(0, "timestamp")
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    if json:
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(structlog.processors.LogfmtRenderer(key_order=keys))
        processors.append(_printable)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
