# SPDX-License-Identifier: GPL-2.0-or-later
"""The integration tests on the QEMU of each Debian suite that is supported."""
