# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a run is: its clock and its phase."""

import time

from memshare.experiment.plan import BOOT


class Stage:
    """Known to all who write something down."""

    def __init__(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self.phase = BOOT

    @property
    def now(self) -> float:
        """Seconds since the run's first guest was started."""
        return time.monotonic() - self._began
