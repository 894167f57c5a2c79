# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare completion`: what shells are given, in a bash that completes with it, and the other two's questions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memshare.cli import VERBS

MEMSHARE = Path(sys.executable).parent / "memshare"


def run(*arguments: str | Path, **environment: str) -> str:
    """Run a program that must succeed without a word on stderr; return what it prints."""
    path = f"{MEMSHARE.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# As readline does it: the function that `complete -p` names, with the words in an array.
BASH = r"""
    source "$1"; shift
    function=$(complete -p memshare | sed 's/.*-F \([^ ]*\).*/\1/')
    for line in "$@"; do
        IFS=' ' read -ra COMP_WORDS <<< "$line"
        [[ $line != *' ' ]] || COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
        "$function" memshare
        printf '%s\n' "${COMPREPLY[*]}"
    done
"""


def test_bash_completes_verbs_and_options(tmp_path: Path) -> None:
    file = tmp_path / "memshare.bash"
    file.write_text(run(MEMSHARE, "completion", "bash"))
    lines = ("memshare ", "memshare doctor --q", "memshare status -o ")
    offered = run("bash", "--norc", "-c", BASH, "bash", file, *lines).splitlines()
    assert offered == [" ".join(VERBS), "--qemu", "table json csv"]


@pytest.mark.parametrize(
    ("shell", "name", "answer"),
    [("zsh", "_memshare", "plain\nstatus\n"), ("fish", "memshare.fish", "plain,status\t")],
)
def test_other_shells_ask_what_is_answered(
    shell: str, name: str, answer: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(run(MEMSHARE, "completion", shell))
    asked = f"_MEMSHARE_COMPLETE={shell}_complete"
    assert asked in file.read_text()
    words = {"COMP_WORDS": "memshare stat", "COMP_CWORD": "1" if shell == "zsh" else "stat"}
    assert run(MEMSHARE, _MEMSHARE_COMPLETE=f"{shell}_complete", **words).startswith(answer)
    if shutil.which(shell):  # the file is a program of that shell's
        run(shell, "-n", file)


def test_verbs_are_offered_without_importing_them() -> None:
    asked = "from memshare.cli import root; import click, sys; root.shell_complete("
    offered = "click.Context(root), ''); print([m for m in sys.modules if 'memshare.cli.' in m])"
    assert run(sys.executable, "-c", asked + offered) == "[]\n"
