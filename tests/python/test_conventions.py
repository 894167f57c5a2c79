# SPDX-License-Identifier: GPL-2.0-or-later
"""The conventions check finds what it is there for."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "conventions", Path(__file__).parents[1] / "lint" / "conventions.py"
)
assert SPEC is not None and SPEC.loader is not None
conventions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(conventions)


def test_missing_licence_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.c").write_text("/* SPDX-License-Identifier: GPL-2.0-or-later */\n")
    (tmp_path / "bad.c").write_text("int x;\n")
    (tmp_path / "notes.txt").write_text("anything\n")
    problems = conventions.missing_licences(
        tmp_path, [Path("good.c"), Path("bad.c"), Path("notes.txt")]
    )
    assert len(problems) == 1
    assert problems[0].startswith("bad.c")


def test_unproven_invariants_are_named(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "ARCHITECTURE.md").write_text(
        "- **I1** cited and attacked\n- **I2** neither\n- **I3** later (open)\n- **I10** attacked\n"
    )
    (tmp_path / "a.c").write_text("/* I1 */\n")
    (tmp_path / "tests" / "t.c").write_text("test_I1_holds\ntest_I10_holds\n")
    problems = conventions.unproven_invariants(tmp_path, [Path("a.c"), Path("tests/t.c")])
    assert problems == [
        "I2: no code cites it",
        "I2: no test named test_I2_*",
        "I10: no code cites it",
    ]
