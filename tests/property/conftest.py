# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis on two shared cores: no deadline for one example, failures printed as code to paste."""

from hypothesis import settings

settings.register_profile("memshare", deadline=None, print_blob=True)
settings.load_profile("memshare")
