# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may connect."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lib.broker import NOBODY, Broker, Client, RefusedError, RemoteClient, unified_cgroup

UUID = str(uuid.UUID(int=1))


def own_cgroup() -> str:
    """This process's cgroup v2 path."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    (path,) = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return path


@pytest.fixture
def closed() -> Iterator[Broker]:
    """A broker that serves announced guests only."""
    with Broker("--group", "a", "--group", "b", "--socket-mode", "0666") as running:
        yield running


def refusal(broker: Broker, group: str, cgroup: Path | None = None) -> str:
    """Why that group refuses a process (in that cgroup); empty when it does not."""
    with RemoteClient(broker.socket_path(group), cgroup=cgroup) as client:
        try:
            client.call("hello", "vm1")
        except RefusedError as refused:
            return str(refused)
    return ""


def test_I5_not_announced_is_refused_and_logged(closed: Broker) -> None:
    assert "no guest in cgroup" in refusal(closed, "a")
    assert 'client_refused group=a guest="" ' in closed.log()


def test_I5_announced_by_its_cgroup_for_one_group(closed: Broker) -> None:
    control = closed.control()
    control.do("allow", uuid=UUID, group="a", cgroup=own_cgroup())
    assert refusal(closed, "a") == ""
    assert "for group b" in refusal(closed, "b")
    control.do("allow", uuid=UUID, group="b", cgroup=own_cgroup())
    assert "for group a" in refusal(closed, "a"), "one guest is in one group"
    assert refusal(closed, "b") == ""
    control.do("forget", uuid=UUID)
    assert "no guest" in refusal(closed, "b")


def test_I5_a_cgroup_announced_anew_is_the_new_guests(closed: Broker) -> None:
    """A domain defined anew under its old name may get the cgroup of the one before."""
    control, other = closed.control(), str(uuid.UUID(int=2))
    control.do("allow", uuid=UUID, group="a", cgroup=own_cgroup())
    control.do("allow", uuid=other, group="b", cgroup=own_cgroup())
    assert control.do("status")["allowed"] == [
        {"uuid": other, "group": "b", "cgroup": own_cgroup()}
    ]
    assert "for group a" in refusal(closed, "a")
    assert refusal(closed, "b") == ""


def test_I5_children_of_the_cgroup_but_no_namesakes(closed: Broker) -> None:
    with unified_cgroup() as cgroup:
        name = own_cgroup().rstrip("/") + "/" + cgroup.name
        control = closed.control()
        control.do("allow", uuid=UUID, group="a", cgroup=name + "/")
        assert refusal(closed, "a", cgroup) == ""
        assert refusal(closed, "a", cgroup / "below") == ""
        assert "no guest" in refusal(closed, "a")
        for other in (name[:-1], name + "x", "/", name + "/below/further"):
            control.do("allow", uuid=UUID, group="a", cgroup=other)
            assert "no guest" in refusal(closed, "a", cgroup), other


def test_by_mode_admits_another_user(broker: Broker) -> None:
    with RemoteClient(broker.socket_path(), user=NOBODY) as client:
        client.call("hello", "nobody")
        (session,) = broker.control().group()["sessions"]
        assert (session["pid"], session["uid"]) == (client.pid, NOBODY)


def test_socket_mode_and_group_also_for_later_groups() -> None:
    options = ("--group", "a", "--allow-by-mode", "--socket-group", "12345")
    with Broker(*options, "--socket-mode", "0620") as broker:
        broker.control().do("group-add", group="b")
        for name in ("a", "b"):
            facts = broker.socket_path(name).stat()
            assert (facts.st_gid, facts.st_mode & 0o7777) == (12345, 0o620)
        assert (broker.directory / "control.sock").stat().st_mode & 0o7777 == 0o600


def test_broker_without_the_device_says_so() -> None:
    with (
        Broker("--group", "default", "--allow-by-mode", user=NOBODY) as broker,
        Client(broker.socket_path()) as client,
        pytest.raises(RefusedError, match=r"cannot open /dev/userfaultfd: Permission denied"),
    ):
        client.hello()
