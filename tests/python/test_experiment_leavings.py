# SPDX-License-Identifier: GPL-2.0-or-later
"""A run that was killed outright leaves nothing on the host once it goes on; one that ended leaves nothing to do."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from memshare.bench import rig
from memshare.clients import ksm
from memshare.experiment.leavings import KSMTUNED_PID, NAME, noted, take_away

#: Never left: a process that is killed leaves no block.
KILLED: list[AbstractContextManager[None]] = []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of files: knobs of KSM, a limit, a cgroup, a folder of work, an experiment."""
    for name in ("ksm", "cgroup", "work", "experiment"):
        (tmp_path / name).mkdir()
    (tmp_path / "ksm" / "run").write_text("0\n")
    (tmp_path / "ksm" / "pages_to_scan").write_text("100\n")
    (tmp_path / "max_map_count").write_text("65530\n")
    monkeypatch.setattr(ksm, "KSM", tmp_path / "ksm")
    monkeypatch.setattr(rig, "MAX_MAP_COUNT", tmp_path / "max_map_count")
    return tmp_path


def killed(host: Path) -> None:
    """Do what a run does, up to where it is killed."""
    meanwhile = noted(host / "experiment", host / "work", host / "cgroup")
    meanwhile.__enter__()
    KILLED.append(meanwhile)
    ksm.write_knobs({"pages_to_scan": "100000", "run": "1"})
    rig.MAX_MAP_COUNT.write_text("1048576")


def test_what_was_left_is_taken_away(host: Path) -> None:
    killed(host)
    take_away(host / "experiment")
    assert ksm.read_knobs() == {"pages_to_scan": "100", "run": "0"}
    assert rig.MAX_MAP_COUNT.read_text() == "65530"
    assert sorted(path.name for path in host.iterdir()) == ["experiment", "ksm", "max_map_count"]
    assert not (host / "experiment" / NAME).exists()


def test_a_run_that_ended_leaves_nothing_to_do(host: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        noted(host / "experiment", host / "work", host / "cgroup"),
    ):
        assert (host / "experiment" / NAME).exists()
        raise KeyboardInterrupt
    ksm.write_knobs({"run": "1"})
    take_away(host / "experiment")
    assert ksm.read_knobs()["run"] == "1", "somebody else's by now"


def test_the_script_is_ended_and_nobody_who_has_its_number(host: Path) -> None:
    for name, is_ended in (("ksmtuned", True), ("innocent", False)):
        program = [sys.executable, "-c", "input()", name]
        with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
            (host / "work").mkdir(exist_ok=True)
            (host / "work" / KSMTUNED_PID).write_text(f"{process.pid}\n")
            killed(host)
            take_away(host / "experiment")
            assert process.stdin is not None
            if not is_ended:
                process.stdin.write(b"\n")
        assert process.returncode == (-9 if is_ended else 0)
