# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that talks to other processes or the kernel. No decisions here."""
