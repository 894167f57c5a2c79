# SPDX-License-Identifier: GPL-2.0-or-later
"""The schema of what verbs print; tests of the verbs themselves hold what they print against it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError
from tests.lib.documents import parsed

from memshare.cli.schema import DOCUMENTS, schema

FILE = Path(__file__).resolve().parents[2] / "docs" / "schema.json"


def test_file_is_current() -> None:
    command = [sys.executable, "-m", "memshare.cli.schema"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert FILE.read_text() == printed


def test_schema_is_one_and_has_each_verb() -> None:
    Draft202012Validator.check_schema(schema())
    definitions = schema()["$defs"]
    assert isinstance(definitions, dict) and definitions.keys() > DOCUMENTS.keys()


@pytest.mark.parametrize(
    "wrong",
    [{}, {"findings": 1}, {"schema": 2}, {"more": 1}],
    ids=["nothing", "type", "number", "key"],
)
def test_what_is_not_as_the_schema_says_is_noticed(wrong: dict[str, object]) -> None:
    right = {"schema": 1, "findings": []}
    assert parsed("doctor", json.dumps(right)) == right
    with pytest.raises(ValidationError):
        parsed("doctor", json.dumps({**right, **wrong} if wrong else {}))
