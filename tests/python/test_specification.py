# SPDX-License-Identifier: GPL-2.0-or-later
"""SPECIFICATION.md names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`([\w/]+\.(?:py|c))::(\w+)`", (ROOT / "SPECIFICATION.md").read_text())


@pytest.mark.parametrize(("file", "function"), NAMED)
def test_the_test_named_is_there(file: str, function: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    if file.endswith(".c"):
        # Defined, and in the list of those that are run.
        assert re.search(rf"^static void {function}\(", text, re.MULTILINE)
        assert re.search(rf"(?:TEST|cmocka_unit_test)\(\s*{function}\)", text)
        return
    body = ast.parse(text).body
    assert function in [
        n.name for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_each_promise_names_its_test() -> None:
    promises, _, _ = (ROOT / "SPECIFICATION.md").read_text().partition("## Unverified")
    rows = [line for line in promises.splitlines() if line.startswith("| ")]
    assert len(rows) - rows.count("| promise | test |") == len(NAMED) >= 30
