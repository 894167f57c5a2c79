# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare daemon`: looks, has the policy decide, carries out, and tells."""
