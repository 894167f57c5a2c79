# SPDX-License-Identifier: GPL-2.0-or-later
"""All metrics."""

from memshare.metrics import group, guest, host

METRICS = (*host.METRICS, *group.METRICS, *guest.METRICS)
