# SPDX-License-Identifier: GPL-2.0-or-later
"""memshare: guests of one host share equal memory pages."""
