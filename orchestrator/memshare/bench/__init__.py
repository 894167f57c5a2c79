# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments: guests, load, measurement. Nothing here is needed to share memory."""
