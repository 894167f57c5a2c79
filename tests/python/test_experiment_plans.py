# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans of experiments: what is refused, and that those which come with memshare are good."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from memshare.cli import root
from memshare.errors import UsageError
from memshare.experiment import plan as plans
from memshare.experiment.plan import EngineKind, Load

GOOD: dict[str, Any] = {
    "name": "good",
    "guests": {"count": 2},
    "engines": ["off", "memshare"],
    "phase": [{"name": "idle", "seconds": 5}],
}


def changed(**changes: Any) -> dict[str, Any]:
    """Return the good plan with other keys; None takes one away."""
    data = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {name: value for name, value in data.items() if value is not None}


def test_a_good_plan_has_its_defaults() -> None:
    plan = plans.decode(GOOD, "here")
    assert (plan.guests.ram_bytes, plan.budget_bytes) == (512 << 20, None)
    assert plan.phase[0].loads == (Load.IDLE,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"speed": 3}, "unknown field `speed`"),
        ({"guests": {"count": 2, "color": "red"}}, r"unknown field `color` - at `\$.guests`"),
        ({"guests": None}, "missing required field `guests`"),
        ({"guests": {"count": 0}}, r"at `\$.guests.count`"),
        ({"guests": {"count": 2, "ram": "many"}}, "guests.ram: 'many': not a size"),
        ({"guests": {"count": 2, "integrity-bytes": "0"}}, "guests.integrity-bytes: '0'"),
        ({"budget": "4X"}, "budget: '4X': not a size"),
        ({"engines": []}, r"at `\$.engines`"),
        ({"engines": ["off", "off"]}, "engines: one is named twice"),
        ({"engines": ["magic"]}, "'magic'"),
        ({"repeats": 0}, r"at `\$.repeats`"),
        ({"phase": None}, "either phases or a ladder"),
        ({"ladder": {}, "budget": "1G"}, "either phases or a ladder"),
        ({"phase": None, "ladder": {}}, "a ladder needs a budget"),
        ({"phase": [{"name": "a", "seconds": 0}]}, r"at `\$.phase\[0\].seconds`"),
        ({"phase": [{"name": "a", "seconds": 1, "loads": ["sing"]}]}, "'sing'"),
        ({"phase": [{"name": "a", "seconds": 1}] * 2}, "two phases have one name"),
        ({"phase": [{"name": "boot", "seconds": 1}]}, "no phase can be named 'boot'"),
        ({"start_phase": "later"}, "there is no phase named 'later'"),
    ],
)
def test_a_bad_plan_is_refused_with_file_and_key(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=rf"here: .*{complaint}"):
        plans.decode(changed(**changes), "here")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml: no such file"):
        plans.load(tmp_path / "absent.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("name = \n")
    with pytest.raises(UsageError, match=r"bad\.toml: "):
        plans.load(bad)


def test_engines_run_in_turn_within_each_repeat() -> None:
    plan = plans.decode(changed(repeats=2), "here")
    off, memshare = EngineKind.OFF, EngineKind.MEMSHARE
    assert plan.runs() == [(0, off), (0, memshare), (1, off), (1, memshare)]


def test_sizes() -> None:
    assert [plans.parse_size(text) for text in ("7", "2K", "3M", "1g")] == [
        7,
        2 << 10,
        3 << 20,
        1 << 30,
    ]


@pytest.mark.parametrize("path", plans.shipped(), ids=lambda path: path.stem)
def test_plans_that_come_with_memshare(path: Path) -> None:
    plan = plans.load(path)
    assert plan.name == path.stem
    assert plan.description
    assert plans.find(plan.name) == path


def test_there_are_all_that_the_documents_name() -> None:
    names = "quick converge floor ladder slowdown windows-like engines same-media wine page-cache"
    assert set(names.split()) <= {path.stem for path in plans.shipped()}


def test_a_plan_that_is_neither_file_nor_shipped_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no plan named nothing") as caught:
        plans.find("nothing")
    assert "quick" in (caught.value.hint or "")
    assert plans.find("some/file.toml") == Path("some/file.toml")


def test_plans_are_listed() -> None:
    answer = CliRunner().invoke(root, ["bench", "plans", "-o", "json"])
    assert answer.exit_code == 0, answer.output
    listed = {plan["name"]: plan for plan in json.loads(answer.output)["plans"]}
    assert set(listed) == {path.stem for path in plans.shipped()}
    assert listed["engines"]["runs"] == 2 * len(EngineKind)
