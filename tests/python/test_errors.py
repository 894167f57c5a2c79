# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of error has its exit code, two lines and no traceback."""

import re

import click
import pytest

from memshare import errors
from memshare.cli import run

TREE = [errors.MemshareError, *errors.MemshareError.__subclasses__()]


def test_docstring_tells_the_exit_codes() -> None:
    told = {name: int(code) for name, code in re.findall(r"(\w+Error) +(\d)", errors.__doc__ or "")}
    assert told == {
        kind.__name__: kind.exit_code for kind in TREE if kind.__module__ == errors.__name__
    }


def failing(error: BaseException) -> click.Command:
    @click.command()
    @click.option("--debug", is_flag=True)
    def command(*, debug: bool) -> None:
        raise error

    return command


@pytest.mark.parametrize("kind", TREE)
def test_error_becomes_one_line_a_hint_and_a_code(
    kind: type[errors.MemshareError], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(failing(kind("it broke", "mend it")), [], "x")
    assert exit_.value.code == kind.exit_code
    assert capsys.readouterr().err == "error: it broke\nhint: mend it\n"


def test_errors_of_a_task_group_are_reported_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("many", [ExceptionGroup("inner", [errors.HostError("no root")])])
    with pytest.raises(SystemExit) as exit_:
        run(failing(group), [], "x")
    assert exit_.value.code == 5
    assert capsys.readouterr().err == "error: no root\n"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(errors.HostError):
        run(failing(errors.HostError("no root")), ["--debug"], "x")


def test_a_bug_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), [], "x")


def test_wrong_option_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(failing(ValueError()), ["--wrong"], "x")
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("error: no such option")
