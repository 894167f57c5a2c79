# SPDX-License-Identifier: GPL-2.0-or-later
"""What verbs print with `-o json`, held against the schema: each key that is there has to be in it."""

import json
from typing import Any

from jsonschema import Draft202012Validator

from memshare.cli.schema import schema


def _closed(part: Any) -> Any:
    """The schema of documents that have no other keys than those it names."""
    if isinstance(part, list):
        return [_closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items()}
    return {**closed, "additionalProperties": False} if "properties" in part else closed


def parsed(verb: str, text: str) -> Any:
    """The document that a verb has printed; raises where it is not as the schema says."""
    document = json.loads(text)
    whole = _closed(schema())
    Draft202012Validator({**whole, "$ref": f"#/$defs/{verb}"}).validate(document)
    return document
