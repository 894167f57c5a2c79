# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds: what was stopped stays stopped until it is released."""

from pathlib import Path

import pytest

from memshare.clients.holds import ALL, FOLDER, Hold, Verb, hold, read_holds, release
from memshare.errors import MemshareError
from memshare.model import Mode

PAUSE, DRAIN = Hold(verb=Verb.PAUSE), Hold(verb=Verb.DRAIN, modes={"a": Mode.ZERO})


def test_nothing_is_held_at_first(tmp_path: Path) -> None:
    assert read_holds(tmp_path).of("a") is None


@pytest.mark.parametrize("name", ["a", "all", "../../etc/passwd", "guest-a", "%41", "ä b"])
def test_a_hold_is_of_that_guest_and_of_no_other(tmp_path: Path, name: str) -> None:
    hold(tmp_path, name, DRAIN)
    holds = read_holds(tmp_path)
    assert holds.guests == {name: DRAIN}
    assert holds.all is None
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / FOLDER]
    release(tmp_path, name)
    release(tmp_path, name)
    assert read_holds(tmp_path).of(name) is None


def test_a_hold_on_all_holds_everybody_and_the_stronger_one_counts(tmp_path: Path) -> None:
    hold(tmp_path, None, PAUSE)
    hold(tmp_path, "a", DRAIN)
    holds = read_holds(tmp_path)
    assert (holds.of("a"), holds.of("yet to come")) == (DRAIN, PAUSE)
    hold(tmp_path, None, Hold(verb=Verb.DRAIN))
    hold(tmp_path, "a", PAUSE)
    of_a = read_holds(tmp_path).of("a")
    assert of_a is not None
    assert of_a.verb is Verb.DRAIN


def test_what_cannot_be_read_holds(tmp_path: Path) -> None:
    hold(tmp_path, "a", DRAIN)
    (tmp_path / FOLDER / "guest-a").write_text('{"verb": "dra')
    (tmp_path / FOLDER / ALL).write_text("")
    holds = read_holds(tmp_path)
    assert (holds.of("a"), holds.of("b")) == (PAUSE, PAUSE)
    (tmp_path / FOLDER / "guest-c").write_bytes(b'{"verb": "\xff"}')
    assert read_holds(tmp_path).guests["c"] == PAUSE


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(MemshareError, match=r"guest-a: "):
        hold(tmp_path, "a", PAUSE)
