# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests under KVM, and two under TCG, write to pages all the time that they merge with each other.

What each word must be the guest knows and looks at (tests/payload/racer.c). All of a guest's pages differ, so
whatever is shared is shared with the other one. Virtual machines of KVM's have page tables of their own, which
the kernel keeps in step with those of QEMU: a write that went to a page which has been moved away would be
seen as lost here.
"""

import asyncio
from pathlib import Path

import pytest
from tests.lib.broker import Broker, Control, build_directory
from tests.lib.payload import Report, sharing
from tests.lib.vm import Stats, running, until

pytestmark = pytest.mark.full_hash

PAGES_BAR = 1000
#: After so many rounds each word has been looked at.
ALL_WORDS_ROUNDS = 8
#: KVM may emulate each instruction of such a guest.
DEADLINE_SECONDS = 240.0

LINGERING = {
    "LD_PRELOAD": str(build_directory() / "tests" / "integration" / "liblinger.so"),
    "MEMSHARE_LINGER_NS": "1000000",
}

KVM = pytest.mark.skipif(
    not Path("/dev/kvm").exists(), reason="no /dev/kvm: ./dev test -m slow tries TCG"
)


def has_merged_broken_and_rebuilt(stats: Stats) -> bool:
    """Whether that has happened to enough pages, also to such as the guest waited for."""
    return (
        min(stats["merged_pages"], stats["breaks"], stats["rebuilt_pages"]) >= PAGES_BAR
        and stats["slept_faults"] > 0
    )


def is_private(stats: Stats) -> bool:
    """Whether all memory is plain again."""
    return bool(
        stats["state"] == "off" and stats["shared_pages"] == 0 and stats["broken_pages"] == 0
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "accel", [pytest.param("kvm", marks=KVM), pytest.param("tcg", marks=pytest.mark.slow)]
)
async def test_I1_I2_pages_merge_and_break_and_merge_again_under(
    accel: str, broker: Broker, control: Control, tmp_path: Path
) -> None:
    reports = [Report(tmp_path / name, "racer") for name in "ab"]
    first, second = ([*sharing(broker), *report.arguments] for report in reports)
    async with (
        running(*first, accel=accel, environment=LINGERING) as a,
        running(*second, accel=accel, environment=LINGERING) as b,
    ):
        for vm in (a, b):
            await until(vm.stats, has_merged_broken_and_rebuilt, DEADLINE_SECONDS)
        assert control.group()["members"] == 2
        await all_look_at_all(reports)

        await a.set("mode", "off")
        await until(a.stats, is_private, DEADLINE_SECONDS)
        await all_look_at_all(reports)


async def all_look_at_all(reports: list[Report]) -> None:
    """Wait until both guests have compared every word."""
    async with asyncio.TaskGroup() as group:
        for report in reports:
            group.create_task(report.more_rounds(ALL_WORDS_ROUNDS, DEADLINE_SECONDS))
