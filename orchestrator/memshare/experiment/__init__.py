# SPDX-License-Identifier: GPL-2.0-or-later
"""Overcommit experiments: real guests, several engines, one report.

    plan -> images -> runner (one run an engine and repeat) -> run folder -> figures -> report

A plan (`plan`) says which guests get which load under which engines. The runner starts the same guests once for each
engine and repeat and writes down, every second, what happened (`record`). Everything that a report says is computed from
those files alone (`figures`, pure), so that a report can be made again, and two can be compared, without a guest.
"""
