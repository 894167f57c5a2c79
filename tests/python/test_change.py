# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare attach`, `set` and `detach` where no QEMU is needed: libvirt's own test driver, or nobody.

tests/integration/test_libvirt.py has the rest.
"""

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from memshare.cli import change
from memshare.cli.change import Host
from memshare.cli.guests import configured
from memshare.clients.fleet import read_fleet
from memshare.clients.libvirt import Running
from memshare.clients.monitor import Monitor
from memshare.domain import attachment
from memshare.domain.attachment import Wish
from memshare.domain.plugin import Plugin
from memshare.errors import UnreachableError
from memshare.model import Mode, Option
from test_status import memshare

#: Has one guest, `test`, of a kind that is not QEMU's.
DRIVER = ("--connect", "test:///default")
PLUGIN = ("--plugin", "/x/libmemshare-qemu.so")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("attach", *PLUGIN), 2, "name guests, or say --all"),
        (("attach", "a", "--all", *PLUGIN), 2, "--all, or names: not both"),
        (("detach", "a", "--live", "--current"), 2, "--current excludes --live and --config"),
        (("attach", "a", "--max-rate", "much", *PLUGIN), 2, "'much' is not a valid integer"),
        (("attach", "a", "--plugin", "here.so"), 2, "an absolute path is needed"),
        (("set", "a"), 2, "nothing to set"),
        (("attach", "a", *DRIVER, *PLUGIN), 4, "a: domain not found"),
        (("attach", "test", *DRIVER, *PLUGIN), 5, "test: cannot share: <domain type='test'>"),
        (("attach", "--all", *DRIVER, *PLUGIN), 5, "test: cannot share: <domain type='test'>"),
        (("attach", "test", "--group", "A", *DRIVER, *PLUGIN), 5, "cannot share"),
        (("set", "test", "--weight", "2", *DRIVER, *PLUGIN), 1, "test: is not attached"),
        (("detach", "a", "--connect", "qemu+unix:///system?socket=/absent"), 3, "/absent"),
        (("status", "--connect", "qemu+unix:///system?socket=/absent"), 3, "/absent"),
    ],
)
async def test_what_cannot_be_done_is_one_line_and_a_code(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended, out, err = await memshare(*arguments)
    assert (ended, out) == (code, "")
    assert err.startswith("error: ")
    assert message.lower() in err.splitlines()[0].lower()


async def test_guests_that_name_no_group_are_in_the_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "memshare.toml"
    config.write_text('group = "house"\nconnect = ["test:///default"]\nqmp-dirs = []\n')
    monkeypatch.setenv("MEMSHARE_CONFIG", str(config))
    path = "/x/libmemshare-qemu.so"
    assert Host(plugin_path=path).place() == (Plugin(path=path), "house")
    assert Host(plugin_path=path, group="other").place()[1] == "other"
    found = await read_fleet(msgspec.structs.replace(configured(), qmp_dirs=()))
    assert [guest.owner_group for guest in found] == ["house"]
    config.write_text("groop = 1")
    ended, _, err = await memshare("attach", "test", *DRIVER, *PLUGIN)
    assert (ended, err.startswith(f"error: {config}: ")) == (2, True)


async def test_a_fleet_leaves_out_what_is_not_attached() -> None:
    assert await memshare("set", "--all", "--weight", "2", *DRIVER, *PLUGIN) == (0, "", "")


async def test_detaching_what_is_not_attached_changes_nothing() -> None:
    assert await memshare("detach", "test", "--dry-run", *DRIVER) == (0, "", "")
    assert await memshare("detach", "test", *DRIVER) == (0, "", "test: is as wanted (config)\n")


class Guest(Monitor):
    """A guest that runs, and what its monitor was told; the one that is stuck does not answer."""

    def __init__(self, name: str, xml: str) -> None:
        super().__init__(name)
        self.xml = xml
        self.told: list[object] = []
        self.is_stuck = False

    async def execute(self, command: str, **arguments: object) -> None:
        if self.is_stuck:
            raise UnreachableError(f"{self.where}: libvirt does not answer")
        self.told.append((arguments["property"], arguments["value"]))


class FakeHypervisor:
    """A libvirt that has these guests."""

    def __init__(self, *guests: Guest) -> None:
        self.guests = {guest.where: guest for guest in guests}
        self.options: list[tuple[str, Option | None]] = []

    async def names(self) -> list[str]:
        return list(self.guests)

    async def find(self, name: str) -> Running:
        xml = self.guests[name].xml
        return Running(uuid=name, name=name, id=1, persistent=False, xml=xml)

    def monitor(self, guest: Running) -> Guest:
        return self.guests[guest.name]

    async def set_live_option(self, name: str, wanted: Option | None) -> None:
        self.options.append((name, wanted))


def use(monkeypatch: pytest.MonkeyPatch, hypervisor: FakeHypervisor) -> None:
    @asynccontextmanager
    async def opened(_uri: str) -> AsyncIterator[FakeHypervisor]:
        yield hypervisor

    monkeypatch.setattr(change, "open_hypervisor", opened)


DETACH = change.Verb(edit=attachment.detach, edit_live=attachment.detach_live, done="detached")
SCOPE = change.Scope(live=False, config=False, current=False)
ALL = change.Target(uri="x", guests=(), fleet=True, scope=SCOPE, dry_run=False)
ATTACHED = attachment.attach(
    "<domain type='kvm'/>", Wish(), Plugin(path="/x/libmemshare-qemu.so"), "default"
)


async def test_a_guest_that_does_not_answer_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = [Guest(name, ATTACHED) for name in ("web1", "web2", "web3")]
    guests[1].is_stuck = True
    use(monkeypatch, hypervisor := FakeHypervisor(*guests))
    with pytest.raises(UnreachableError, match="web2: libvirt does not answer"):
        await change._change(DETACH, ALL)
    off = [("mode", Mode.OFF)]
    assert [guest.told for guest in guests] == [off, [], off]
    assert hypervisor.options == [("web1", None), ("web3", None)]
    assert capsys.readouterr().err == "web1: detached (live)\nweb3: detached (live)\n"


async def test_a_plugin_without_an_option_is_switched_off_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = Guest("web1", attachment.detach_live(ATTACHED))
    use(monkeypatch, hypervisor := FakeHypervisor(guest))
    await change._change(DETACH, msgspec.structs.replace(ALL, dry_run=True))
    assert (guest.told, capsys.readouterr().err) == ([], "")
    await change._change(DETACH, ALL)
    assert guest.told == [("mode", Mode.OFF)]
    assert hypervisor.options == [], "there is none to take away"
    assert capsys.readouterr().err == "web1: detached (live)\n"


async def test_a_guest_without_qemu_is_listed_with_the_reason() -> None:
    code, out, _ = await memshare("list", *DRIVER, "-o", "csv")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["domain"], row["source"]) == ("test", "test:///default")
    assert "not supported by the connection driver" in row["reason"]
