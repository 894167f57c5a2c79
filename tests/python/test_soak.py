# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests of `./dev soak` say is put together and judged as it was meant, and engines' figures are added up."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.soak.__main__ import figures, first_line
from tests.soak.member import Counters, Member
from tests.soak.run import Soak

from memshare.bench.fleet import AgentError


class Says:
    """A QEMU whose guest says this, and then nothing more."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = list(lines)

    async def hear(self) -> bytes:
        return self._lines.pop(0) if self._lines else b""


def member(*speakers: Says) -> Member:
    """A guest that was in these QEMUs, one after the other."""
    made = Member("g", speakers[0], ("other", "common"))
    for speaker in speakers[1:]:
        made._next_speakers.put_nowait(speaker)
    return made


async def listen(one: Member) -> None:
    """Until there is no more to be heard."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await one.listen()


async def test_rounds_are_counted_across_qemus() -> None:
    one = member(Says(b"ok other\n", b"ok com"), Says(b"mon\n"), Says(b"ok other\n"))
    await listen(one)
    assert one.rounds == 3


@pytest.mark.parametrize(
    "lines", [(b"bad 1 of 8 files differ\n",), (b"ok common\n",), (b"ok other\n", b"ok other\n")]
)
async def test_anything_but_what_must_be_said_is_an_error(lines: Sequence[bytes]) -> None:
    with pytest.raises(AgentError, match="guest g: round"):
        await member(Says(*lines)).listen()


def test_engines_are_added_up() -> None:
    left = Counters(merged_pages=5, breaks=1, windows=3, window_buckets=(1, 0, 2, 0))
    now = Counters(merged_pages=2, rebuilt_pages=4, windows=1, window_buckets=(0, 1, 0, 0))
    both = Counters().plus(left).plus(now)
    assert both == Counters(7, 0, 1, 4, 4, (1, 1, 2, 0))
    assert (both.longest_window_us, Counters().longest_window_us) == (4, 0)


def test_figures_of_a_run_that_found_something() -> None:
    soak = Soak(None, (), None)  # type: ignore[arg-type]
    soak.members["g"] = member(Says())
    soak.members["g"].rounds = 4
    soak.drain_seconds = [1.0, 3.0, 1.25]
    soak.verdicts = 2
    found = figures(soak, 60.0, first_line(ExceptionGroup("", [AgentError("it is lost")])))
    assert (found["verifications"], found["errors"], found["error"]) == (6, 1, "it is lost")
    assert (found["drains"], found["drain_median_seconds"], found["drain_longest_seconds"]) == (
        *(3, 1.25),
        3.0,
    )
