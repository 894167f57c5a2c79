# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests share: typed peers of the programs under test."""
