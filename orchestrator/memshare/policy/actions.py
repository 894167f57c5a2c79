# SPDX-License-Identifier: GPL-2.0-or-later
"""What the policy wants done. Each says why; whoever carries it out logs the reason and counts the action."""

from enum import IntEnum

import msgspec


class Step(IntEnum):
    """How far the guard has gone. Each step includes those before it."""

    CALM = 0
    SCAN = 1  # full speed
    BALLOON = 2
    HOOK = 3


class SetRate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Set `scan-rate` (pages a second) and `cpu-limit` (percent of a core) of a guest."""

    domain: str
    scan_rate_pages: int
    cpu_limit_percent: int
    reason: str


class ChangeStep(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nothing to do but to tell: the guard goes a step up or down."""

    step: Step
    reason: str


class Balloon(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask a guest's balloon to leave it so much RAM (QMP `balloon`, virDomainSetMemory)."""

    domain: str
    target_bytes: int
    reason: str


class RunHook(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run the operator's script: memory of missing_bytes has to be found, by migration for instance."""

    missing_bytes: int
    reason: str


Action = SetRate | ChangeStep | Balloon | RunHook
