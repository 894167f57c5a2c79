# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./dev compat` makes of its tests' results, and of a suite that has moved on. No network."""

from pathlib import Path

import pytest
from tests.compat.__main__ import Outcome, main, read_outcome, render
from tests.compat.debian import BINARY, CompatError, provide

REPORT = """<testsuites><testsuite tests="9" failures="2" errors="1" skipped="1"/></testsuites>"""


def test_results_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    outcome = read_outcome("10.0.8", report, 1)
    assert outcome == Outcome("10.0.8", passed=5, failed=3, skipped=1, status=1)
    assert not outcome.is_good


def test_no_test_is_no_success(tmp_path: Path) -> None:
    assert not read_outcome("10.0.8", tmp_path / "none.xml", 0).is_good
    assert not Outcome("10.0.8", skipped=4).is_good
    assert Outcome("10.0.8", passed=1, skipped=4).is_good


def test_the_matrix_has_a_line_a_version() -> None:
    assert render([Outcome("7.2.22", 50, 0, 1), Outcome("11.1.3 (Debian)", 49, 1, 1)]) == (
        "QEMU             passed  failed  skipped\n"
        "7.2.22           50      0       1\n"
        "11.1.3 (Debian)  49      1       1"
    )


def test_another_version_in_the_cache_is_an_error(tmp_path: Path) -> None:
    binary = tmp_path / "11.1" / BINARY
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho 'QEMU emulator version 11.2.0 (Debian)'\n")
    binary.chmod(0o755)
    with pytest.raises(CompatError, match=r"QEMU 11\.2\.0 .*not 11\.1: the suite has moved on"):
        provide("11.1", tmp_path, pytest.fail)


def test_an_unknown_version_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["9.9"])
    assert "9.9 is none of 7.2, 10.0, 11.1" in capsys.readouterr().err
