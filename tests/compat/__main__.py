# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev compat``: the integration tests on the QEMU of each supported Debian suite, and a matrix.

Ends with 1 where a test failed or none ran.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from tests.compat.debian import SUITES, CompatError, provide, version_of

FOLDER = Path("out/compat")
TESTS = "tests/integration"
#: The host's libvirt starts no QEMU that is unpacked elsewhere: it is tried with its own Debian's, in ./dev test.
NOT_HERE = ("--ignore-glob=*libvirt.py", "--ignore-glob=*test_operations.py")


class Outcome(NamedTuple):
    """What came of the tests with one QEMU."""

    qemu: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    status: int = 0  # of pytest

    @property
    def is_good(self) -> bool:
        """Whether some tests ran and none failed."""
        return self.status == 0 and self.failed == 0 and self.passed > 0


def say(line: str) -> None:
    """Tell what is being done, before it is."""
    print(f"==> {line}", flush=True)


def read_outcome(qemu: str, report: Path, status: int) -> Outcome:
    """Count what pytest wrote; a pytest that wrote nothing has run nothing."""
    if not report.exists():
        return Outcome(qemu, status=status)
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return Outcome(qemu, passed, failed, count["skipped"], status)


def run_tests(binary: Path, arguments: list[str]) -> Outcome:
    """Run the integration tests with this QEMU."""
    with tempfile.TemporaryDirectory(prefix="memshare-compat-") as directory:
        report = Path(directory, "report.xml")
        status = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"),
                *(*NOT_HERE, TESTS),
                *arguments,
            ],
            env={**os.environ, "MEMSHARE_QEMU": str(binary.absolute())},
        ).returncode
        return read_outcome(version_of(binary), report, status)


def render(outcomes: list[Outcome]) -> str:
    """Return the matrix."""
    rows = [["QEMU", "passed", "failed", "skipped"]]
    rows += [
        [each.qemu, *(str(count) for count in (each.passed, each.failed, each.skipped))]
        for each in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(words: list[str]) -> int:
    """Run all that is asked for, also after a failure."""
    words, arguments = (
        (words[: words.index("--")], words[words.index("--") + 1 :])
        if "--" in words
        else (words, [])
    )
    parser = argparse.ArgumentParser(
        prog="./dev compat", usage="%(prog)s [VERSION...] [-- PYTEST-ARGUMENT...]"
    )
    parser.add_argument("versions", metavar="VERSION", nargs="*", help=", ".join(SUITES))
    versions = parser.parse_args(words).versions or list(SUITES)
    for version in versions:
        if version not in SUITES:
            parser.error(f"{version} is none of {', '.join(SUITES)}")
    outcomes = []
    try:
        binaries = [provide(version, FOLDER, say) for version in versions]
    except CompatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for binary in binaries:
        say(f"QEMU {version_of(binary)}: {' '.join([TESTS, *arguments])}")
        outcomes.append(run_tests(binary, arguments))
    print(render(outcomes))
    return 0 if all(each.is_good for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
