# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare list`, `show` and `audit`, and which guests they find."""

import csv
import io
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from tests.lib.documents import parsed

from fakes.fake_broker import broker_status, fake_broker
from fakes.fake_qmp import fake_qmp
from memshare.cli import VERBS, guests, root, show
from memshare.clients.fleet import Sources, each_once
from memshare.errors import NoSuchDomainError, UsageError
from memshare.model import Domain, Option, PageStats, Session
from samples import group, session, stats
from test_status import SHARING, memshare, stale_socket

SOURCES = Sources(qmp_dirs=(Path("/q"),), uris=())
FIGURES = msgspec.convert(stats(), PageStats)


def domain(name: str, **facts: Any) -> Domain:
    return Domain(name=name, **({"source": "/q"} | facts))


# Which guests


def test_a_guest_of_libvirt_and_of_a_folder_is_one() -> None:
    managed = [domain("web1", uuid="u1", source="qemu:///system", option=Option())]
    assert each_once(managed, [domain("other name", uuid="u1", stats=FIGURES)]) == [
        domain("web1", uuid="u1", source="qemu:///system", option=Option(), stats=FIGURES)
    ]
    assert each_once(managed, [domain("web1")]) == managed, "a QEMU without UUID, by name"


def test_guests_that_only_have_one_name_are_two() -> None:
    managed = [domain("web1", uuid="u1", source="qemu:///system")]
    other = domain("web1", uuid="u2")
    assert each_once(managed, [other]) == [*managed, other]
    assert each_once([], [other, domain("web1", source="/r")]) == [
        *(other, domain("web1", source="/r"))
    ]


def test_libvirts_own_answer_counts_first() -> None:
    managed = [domain("web1", uuid="u1", stats=FIGURES)]
    silent = domain("web1", uuid="u1", problem="no answer", answered=False)
    assert each_once(managed, [silent]) == managed
    unheard = [domain("web1", uuid="u1", problem="libvirt does not answer", answered=False)]
    assert each_once(unheard, [silent]) == unheard


def test_find_takes_a_name_or_a_uuid_and_asks_when_there_are_two() -> None:
    first, second = domain("a", uuid="u1"), domain("a", uuid="u2", source="/r")
    assert guests.find([first, second], "u2", SOURCES) == second
    with pytest.raises(UsageError, match="there is one in /q and /r"):
        guests.find([first, second], "a", SOURCES)
    with pytest.raises(NoSuchDomainError, match="b: no such guest in /q"):
        guests.find([first, second], "b", SOURCES)


# list


async def test_list_has_sharing_plain_and_dead_guests(tmp_path: Path) -> None:
    stale_socket(tmp_path / "dead.qmp")
    (tmp_path / "notes.txt").write_text("not a socket")
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", SHARING, "00000000-0000-0000-0000-000000000001"),
        fake_qmp(tmp_path / "b.qmp", "", {}),
    ):
        code, out, err = await memshare("list", "--qmp-dir", str(tmp_path), "-o", "json")
    assert (code, err) == (0, "")
    answer = parsed("list", out)
    assert answer["schema"] == 1
    plain, dead, web1 = answer["domains"]
    assert (web1["domain"], web1["state"], web1["uuid"][-1]) == ("web1", "running", "1")
    assert (web1["ram_bytes"], web1["shared_pages"]) == (1 << 28, 5)
    assert len(web1["window_time_ns"]) == 24
    assert (plain["domain"], plain["state"], plain["uuid"]) == ("b", "not-sharing", "")
    assert plain["ram_bytes"] is None
    assert (dead["domain"], dead["state"]) == ("dead", "unreachable")
    assert "connection refused" in dead["reason"]
    assert plain.keys() == dead.keys() == web1.keys()


async def test_list_as_csv_and_table_with_refusals(tmp_path: Path) -> None:
    refused = {"memshare0": {"stats": stats(state="refused", refusal="locked memory")}}
    (tmp_path / "more").mkdir()
    where = ("--qmp-dir", str(tmp_path), "--qmp-dir", str(tmp_path / "more"))
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", SHARING),
        fake_qmp(tmp_path / "more/b.qmp", "web2", refused),
    ):
        code, out, _ = await memshare("list", *where, "-o", "csv")
        assert code == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["ram_bytes"] for row in rows] == [str(1 << 28), "0"]
        code, out, _ = await memshare("list", *where)
    assert code == 0
    assert "DOMAIN" in out
    assert "256 MiB" in out
    assert "locked memory" in out


# show


def test_every_figure_is_explained_once() -> None:
    keys = [fact.key for facts in show.SECTIONS.values() for fact in facts]
    assert len(keys) == len(set(keys))
    # A refusal is the reason.
    assert {*PageStats.__struct_fields__, "saved_bytes", "uuid", "source"} - {"refusal"} <= set(
        keys
    )


def test_windows_are_bounded_by_their_bucket() -> None:
    assert show.window_bound([0, 0, 0], 0.5) == ""
    assert show.window_bound([3, 1, 0], 0.5) == "less than 2 us"
    assert show.window_bound([3, 1, 0], 0.999) == "less than 4 us"


def test_a_guest_of_which_nothing_is_known_is_short() -> None:
    row = show.everything(domain("a", problem="no answer", answered=False), None, "")
    assert list(show.lines(row)) == [
        "Guest",
        "  name          a",
        "  found in      /q",
        "  state         unreachable",
        "  reason        no answer",
    ]


def test_a_rate_without_limit_is_said_in_words() -> None:
    guest = domain("a", stats=msgspec.convert(stats(scan_rate_pages=(1 << 64) - 1), PageStats))
    shown = "\n".join(show.lines(show.everything(guest, None, "")))
    assert "  rate          unlimited       pages a second; 0: paused" in shown


def test_what_its_owner_wants_and_the_broker_says_is_shown() -> None:
    known = Session(guest="a", state="active", pid=5, uid=0, grants=77, cost_bytes=4096)
    guest = domain("a", stats=FIGURES, option=Option(weight=9), group="blue")
    shown = "\n".join(show.lines(show.everything(guest, known, "")))
    for line in ("  weight        9", "  grants        77", "  its part      4.0 KiB"):
        assert line in shown
    assert "What its owner wants" not in "\n".join(
        show.lines(show.everything(domain("a", stats=FIGURES), None, ""))
    )


async def test_show_as_json_and_a_guest_that_is_not_there(tmp_path: Path) -> None:
    where = ("--qmp-dir", str(tmp_path), "--broker", str(tmp_path / "none"))
    async with fake_qmp(tmp_path / "a.qmp", "web1", SHARING):
        code, out, err = await memshare("show", "web1", *where, "-o", "json")
        assert (code, err) == (0, "")
        guest = parsed("show", out)["guest"]
        assert (guest["domain"], guest["shared_pages"], guest["broker_grants"]) == ("web1", 5, None)
        assert "none" in guest["broker_problem"]
        code, out, err = await memshare("show", "web2", *where)
    assert (code, out) == (4, "")
    assert err.splitlines()[0] == f"error: web2: no such guest in {tmp_path}"


async def test_show_of_a_guest_that_does_not_answer_is_exit_code_3(tmp_path: Path) -> None:
    stale_socket(tmp_path / "a.qmp")
    code, out, err = await memshare("show", "a", "--qmp-dir", str(tmp_path))
    assert code == 3
    assert "unreachable" in out
    assert "connection refused" in err


# audit

CLEAN = {
    "group": "demo",
    "slots": 3,
    "grants": 6,
    "entries": 4,
    "hashed_slots": 3,
    "problem_count": 0,
    "problems": [],
}


@pytest.mark.parametrize(
    ("audit", "code", "words", "count"),
    [
        (CLEAN, 0, "PASS", 0),
        (CLEAN | {"problem_count": 3, "problems": ["slot 1"]}, 1, "2 more like these", 3),
    ],
)
async def test_audit_asks_the_broker_about_each_group(
    tmp_path: Path, audit: dict[str, Any], code: int, words: str, count: int
) -> None:
    (tmp_path / "guests").mkdir()
    answers = {"status": broker_status(group(sessions=[session(grants=6)])), "audit": audit}
    where = ("--qmp-dir", str(tmp_path / "guests"), "--broker", str(tmp_path / "control.sock"))
    async with (
        fake_qmp(tmp_path / "guests/a.qmp", "web1", SHARING),
        fake_broker(tmp_path / "control.sock", answers),
    ):
        ended, out, err = await memshare("audit", *where)
        assert ended == code
        assert words in out
        assert err == ("" if code == 0 else "error: 3 problems found\n")
        _, out, _ = await memshare("audit", *where, "-o", "json")
    assert parsed("audit", out)["problem_count"] == count


async def test_audit_without_a_broker_is_exit_code_3(tmp_path: Path) -> None:
    code, _, err = await memshare("audit", "--broker", str(tmp_path / "none"))
    assert code == 3
    assert err.splitlines()[1] == "hint: is memshared running?"


# Help


@pytest.mark.parametrize("verb", ["status", "list", "show", "top", "audit"])
def test_help_teaches_with_an_example(verb: str) -> None:
    command = root.get_command(click.Context(root), verb)
    assert command is not None
    assert f"memshare {verb}" in str(command.help)
    assert verb in VERBS
