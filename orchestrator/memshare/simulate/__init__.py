# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that are not there: the policy against models of guests and memory, or against a recording.

run(host, seconds, config)      host.py: closed loop, what is decided has its effect
read(lines), write(snapshots)   recording.py: what a real host looked like
replay(snapshots, config)       recording.py: what would have been decided there
"""

from memshare.simulate.guest import SimulatedGuest
from memshare.simulate.host import Moment, SimulatedHost, run
from memshare.simulate.recording import read, replay, write

__all__ = ["Moment", "SimulatedGuest", "SimulatedHost", "read", "replay", "run", "write"]
