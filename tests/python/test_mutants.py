# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of mutants is tried rarely; that it fits the sources is seen each time."""

from tests.mutate.__main__ import problems_of_table


def test_the_table_fits_the_sources() -> None:
    """Each edit is found once, in a file that cites what it breaks, and each citation has one."""
    assert problems_of_table() == []
