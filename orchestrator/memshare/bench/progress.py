# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a long job is: one moving line on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.status import Status

PLAIN_SECONDS = 2.0  # between two lines that say nearly the same


class Progress:
    """Shows what happens now, on stderr."""

    def __init__(self) -> None:
        """Start the clock."""
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._status: Status | None = None
        self._topic = ""
        self._last = ""
        self._shown = 0.0

    def update(self, text: str) -> None:
        """Say what happens now; what stands before a colon is the topic."""
        now = time.monotonic()
        line = f"{now - self._started:5.1f} s  {text}"
        topic = text.partition(":")[0]
        if self._console.is_terminal:
            if self._status is not None and topic != self._topic:
                self._console.print(self._last, highlight=False)
            self._last = line
            if self._status is None:
                self._status = self._console.status(line)
                self._status.start()
            else:
                self._status.update(line)
        elif topic != self._topic or now - self._shown >= PLAIN_SECONDS or topic == "booting":
            print(line, file=sys.stderr, flush=True)
            self._shown = now
        self._topic = topic

    def end(self) -> None:
        """Take the moving line away."""
        if self._status is not None:
            self._status.stop()
            self._console.print(self._last, highlight=False)
            self._status = None
