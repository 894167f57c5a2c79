# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon, by its socket (`daemon/socket.py` says what it answers)."""

from functools import partial

from memshare.clients import control

ask = partial(control.ask, peer="the daemon", hint="is memshare daemon running?")
