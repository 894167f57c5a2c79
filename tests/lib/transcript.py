# SPDX-License-Identifier: GPL-2.0-or-later
"""Console blocks of a document: what is typed, and what is said to come of it.

In a block fenced as `console`, a line `$ ...` is typed, lines `> ...` after it go on with it, and the others
are what is printed. There `...` is anything, and as a line of its own any number of lines; how wide blanks are,
and where lines are empty, is left to the terminal.
"""

import re
from typing import NamedTuple

ANYTHING = re.escape("...")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """One command, where it stands in the document, and the output that is shown below it."""

    line: int
    command: str
    shown: str

    def is_shown_by(self, output: str) -> bool:
        """Whether the document tells this output truly."""
        pattern = "".join(
            "(?:.*\n)*" if line == "..." else f"{re.escape(line).replace(ANYTHING, '.*')}\n"
            for line in _lines_of(self.shown)
        )
        return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines_of(output))) is not None


def _lines_of(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line]


class Block(NamedTuple):
    """A fenced block: its language, and the line of its first line."""

    language: str
    line: int
    text: str

    def steps(self) -> list[Step]:
        """Return what is typed, in order."""
        steps: list[Step] = []
        for number, line in enumerate(self.text.splitlines(), self.line):
            if line.startswith("$ "):
                steps.append(Step(number, line[2:] + "\n", ""))
                continue
            assert steps, f"line {number}: output before any command"
            last = steps[-1]
            if line.startswith("> ") or line == ">":
                assert not last.shown, f"line {number}: a command goes on after its output"
                steps[-1] = last._replace(command=last.command + line[2:] + "\n")
            else:
                steps[-1] = last._replace(shown=last.shown + line + "\n")
        return steps


def blocks_of(document: str) -> list[Block]:
    """Return all fenced blocks of a document."""
    return [
        Block(found[1], document.count("\n", 0, found.start(2)) + 1, found[2])
        for found in FENCE.finditer(document)
    ]
