# SPDX-License-Identifier: GPL-2.0-or-later
"""What judges of memory have said is read as they have meant it."""

from pathlib import Path

import pytest
from tests.lib.judges import Memtest, State, read_console, read_screen
from tests.lib.vm import VmError

MEMTEST = Memtest(Path("/nowhere"), 16, passes=2)


def screen(test: int, passed: int, errors: int) -> str:
    """What is on the screen of memtest86+, the rest left out."""
    return f"Memory  : 15.4MB            | Test #{test}  [Block move]            ".ljust(
        160
    ) + f"Using: All Cores            | Pass:  {passed}        Errors: {errors}   ".ljust(80)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ("SeaBIOS (version 1.16.2)".ljust(2000), State(False, 0, "begins")),
        (screen(7, 0, 0), State(False, 0, "pass 1, test 7")),
        (screen(10, 1, 0), State(False, 0, "pass 2, test 10")),
        (screen(0, 2, 0), State(True, 0, "pass 3, test 0")),
        (screen(3, 0, 12), State(False, 12, "pass 1, test 3")),
    ],
)
def test_a_screen_of_memtest(seen: str, state: State) -> None:
    assert read_screen(seen, MEMTEST) == state


def test_memtest_can_end_before_a_test_that_waits() -> None:
    wanted = MEMTEST._replace(last_test=9)
    assert not read_screen(screen(9, 0, 0), wanted).is_done
    assert read_screen(screen(10, 0, 0), wanted).is_done


def test_a_console_of_a_program() -> None:
    assert not read_console("").is_done
    assert read_console("judge: memtester 8M 1\r\n").says == "judge: memtester 8M 1"
    assert read_console("judge: x\r\nverdict 0 0\r\n") == State(True, 0, "all is well")
    state = read_console("judge: x\r\nFAILURE: 1 != 2 at offset 3\r\nverdict 1 1\r\n")
    assert (state.is_done, state.errors) == (True, 1)
    with pytest.raises(VmError, match="could not judge"):
        read_console("judge: x\r\nsh: x: not found\r\nverdict 127 0\r\n")
