# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of a real libvirtd: stock QEMUs under one uid, in a sandbox, each in a cgroup of its own.

One libvirtd and one broker for all tests here; each test has guests of its own.
"""

import asyncio
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lib.broker import Broker
from tests.lib.documents import parsed
from tests.lib.libvirtd import USER, Libvirtd, domain_xml, user_group
from tests.lib.vm import until

from memshare.clients import procfs
from memshare.clients.admission import Announcement, announce, find_cgroup, reconcile
from memshare.clients.libvirt import Change, Hypervisor, Kind, open_hypervisor
from memshare.domain import attachment
from memshare.domain.attachment import Wish
from memshare.domain.plugin import Plugin
from memshare.errors import MemshareError, UnreachableError
from memshare.model import Domain, Option, PageStats

pytestmark = pytest.mark.full_hash

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "1f0c9a7e4b5d4c0ea8f2b7d3c6e59012"
NOVA = f"""<metadata>
  <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
    <nova:owner><nova:project uuid='{PROJECT}'>shop</nova:project></nova:owner>
  </nova:instance>
</metadata>"""


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd without guests, with the hook of this project."""
    libvirtd = Libvirtd()
    shutil.copy(ROOT / "packaging/libvirt/memshare-hook", libvirtd.hooks / "qemu")
    with libvirtd:
        yield libvirtd


@pytest.fixture(scope="module")
def tenants() -> Iterator[Broker]:
    """A broker that admits announced guests only, on sockets that all of them can open."""
    mode = ("--socket-mode", "0660", "--socket-group", str(user_group()))
    with Broker("--group", "default", *mode) as broker:
        yield broker


class Host:
    """What a test does here: `memshare` with the addresses of this libvirtd and broker."""

    def __init__(self, libvirtd: Libvirtd, broker: Broker) -> None:
        self.libvirtd = libvirtd
        self.broker = broker
        self.control = broker.directory / "control.sock"
        self.plugin = Plugin(path=str(libvirtd.plugin), runtime_dir=str(broker.directory))
        self._environment = {
            **os.environ,
            "LIBVIRT_DEFAULT_URI": libvirtd.uri,
            "MEMSHARE_PLUGIN": str(libvirtd.plugin),
            "MEMSHARE_RUNTIME_DIR": str(broker.directory),
        }

    async def memshare(self, *arguments: str) -> tuple[int | None, str, str]:
        """Run the command in a process of its own; exit code, output, messages."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from memshare.cli import main; main()", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def do(self, *arguments: str) -> str:
        """As memshare, which must succeed; what it prints."""
        code, out, err = await self.memshare(*arguments)
        assert code == 0, err
        return out

    async def guests(self) -> dict[str, Domain]:
        """Return the guests that run, as `memshare status` sees them."""
        async with open_hypervisor(self.libvirtd.uri) as hypervisor:
            return {guest.name: guest for guest in await hypervisor.domains("default")}

    async def figures(self, name: str) -> PageStats:
        """Return a guest's figures, which it must have."""
        guest = (await self.guests())[name]
        assert guest.stats is not None, guest.problem
        return guest.stats

    def start(self, name: str, group: str | None = None, metadata: str = "") -> None:
        """Start a guest that is attached and scans fast."""
        xml = domain_xml(name, metadata)
        wish = Wish(group=group, min_rate=200_000)
        self.libvirtd.define(attachment.attach(xml, wish, self.plugin, "default"))
        self.libvirtd.virsh("start", name)

    async def announcements(self) -> list[Announcement]:
        """Return what the broker is to be told of the guests that run."""
        async with open_hypervisor(self.libvirtd.uri) as hypervisor:
            return [
                Announcement(
                    uuid=guest.uuid,
                    group=told.group,
                    cgroup=find_cgroup(guest.name, guest.id, self.libvirtd.run),
                )
                for guest in await hypervisor.running()
                if (told := hypervisor.describe(guest, "default")).group is not None
            ]

    async def admit(self) -> None:
        """Announce all guests that run."""
        assert await reconcile(self.control, await self.announcements()) == []


@pytest.fixture
def host(libvirtd: Libvirtd, tenants: Broker) -> Iterator[Host]:
    """Ends and forgets the guests that the test has made."""
    yield Host(libvirtd, tenants)
    for name in libvirtd.virsh("list", "--all", "--name").split():
        if name in libvirtd.virsh("list", "--name").split():
            libvirtd.virsh("destroy", name)
        libvirtd.virsh("undefine", name)


async def stats(hypervisor: Hypervisor, name: str) -> PageStats:
    """Return a guest's figures."""
    guest = await hypervisor.find(name)
    assert guest is not None
    return await hypervisor.monitor(guest).stats()


async def sharing(hypervisor: Hypervisor, *names: str) -> None:
    """Wait until each of these guests shares contents."""
    for name in names:
        await until(
            lambda name=name: stats(hypervisor, name),  # type: ignore[misc]
            lambda stats: stats.shared_pages > 0,
        )


def stores_of(pid: int) -> set[int]:
    """Return the files of broker's stores that a process has mapped."""
    return {mapping.inode for mapping in procfs.mappings(pid) if mapping.path.startswith("/memfd:")}


async def test_attach_set_and_detach(host: Host) -> None:
    libvirtd = host.libvirtd
    libvirtd.define(domain_xml("vm1"))
    code, _, err = await host.memshare("attach", "absent")
    assert (code, err.splitlines()[0][:14]) == (4, "error: absent:")
    libvirtd.virsh("start", "vm1")
    code, _, err = await host.memshare("attach", "vm1", "--live")
    assert code == 5
    assert "was started without memshare" in err
    assert "from the next start on" in err
    listed = parsed("status", await host.do("status", "-o", "json"))["domains"]
    assert [(row["domain"], row["state"], row["reason"]) for row in listed] == [
        ("vm1", "not-sharing", "is not attached")
    ]

    diff = await host.do("attach", "vm1", "--dry-run", "--max-rate", "5000")
    assert '+    <memshare:sharing xmlns:memshare="urn:memshare:domain:1" max-rate="5000"/>' in diff
    assert "memshare" not in libvirtd.virsh("dumpxml", "vm1", "--inactive")
    await host.do("attach", "vm1", "--max-rate", "5000")
    assert (await host.guests())["vm1"].stats is None, "it still runs as it was"
    libvirtd.virsh("destroy", "vm1")
    libvirtd.virsh("start", "vm1")
    seen = await host.figures("vm1")
    assert (seen.scan_rate_pages, seen.mode, seen.group) == (5000, "content", "default")

    await host.do("set", "vm1", "--max-rate", "none", "--min-rate", "123456")
    assert (await host.figures("vm1")).scan_rate_pages == 123456
    for scope in ((), ("--inactive",)):
        assert 'min-rate="123456"' in libvirtd.virsh("dumpxml", "vm1", *scope)
    code, _, err = await host.memshare("set", "vm1", "--live", "--group", "b")
    assert code == 5
    assert "was started in group default, not b" in err

    await host.do("detach", "--all", "--live")
    assert (await host.guests())["vm1"].problem == "is not attached"
    assert (await host.figures("vm1")).mode == "off"
    await host.do("attach", "vm1", "--live", "--mode", "zero")
    assert (await host.guests())["vm1"].problem == ""
    assert (await host.figures("vm1")).mode == "zero"
    await host.do("detach", "vm1")
    assert "memshare" not in libvirtd.virsh("dumpxml", "vm1", "--inactive")


async def test_passwords_are_kept_and_not_shown(host: Host) -> None:
    graphics = "<devices><graphics type='vnc' passwd='sesame'/>"
    host.libvirtd.define(domain_xml("vm1").replace("<devices>", graphics))
    assert "sesame" not in await host.do("attach", "vm1", "--dry-run")
    await host.do("attach", "vm1")
    xml = host.libvirtd.virsh("dumpxml", "vm1", "--inactive", "--security-info")
    assert "passwd='sesame'" in xml
    assert "libmemshare-qemu.so" in xml


async def test_I5_guests_of_one_uid_share_inside_their_tenant_only(host: Host) -> None:
    host.start("a1", "tenant-a")
    host.start("a2", "tenant-a")
    host.start("b1", metadata=NOVA)
    pids = {name: host.libvirtd.pid_of(name) for name in ("a1", "a2", "b1")}
    assert {Path(f"/proc/{pid}").owner() for pid in pids.values()} == {USER}
    await host.admit()
    async with open_hypervisor(host.libvirtd.uri) as hypervisor:
        await sharing(hypervisor, "a1", "a2")
        await until(lambda: stats(hypervisor, "b1"), lambda stats: stats.passes > 2)
        sessions = {
            group["name"]: {session["pid"] for session in group["sessions"]}
            for group in host.broker.control().do("status")["groups"]
        }
        assert sessions["tenant-a"] == {pids["a1"], pids["a2"]}
        assert sessions[PROJECT] == {pids["b1"]}
        stores = {name: stores_of(pid) for name, pid in pids.items()}
        assert stores["a1"] & stores["a2"]
        assert not stores["b1"] & (stores["a1"] | stores["a2"])
    where = ("--broker", str(host.control), "-o", "json")
    audit = parsed("audit", await host.do("audit", *where))
    assert audit["problem_count"] == 0
    assert "tenant-a" in {group["group"] for group in audit["groups"] if group["grants"]}
    guest = parsed("show", await host.do("show", "a1", *where))["guest"]
    assert (guest["broker_pid"], guest["wanted_group"]) == (pids["a1"], "tenant-a")


async def test_I5_a_guest_at_another_tenants_socket_is_refused_and_logged(host: Host) -> None:
    host.start("a1", "tenant-a")
    # What a QEMU would do that its guest has taken over: same uid, same sandbox, another's socket.
    xml = attachment.attach(domain_xml("intruder"), Wish(group="tenant-b"), host.plugin, "default")
    argument = host.plugin.argument(Option(), "tenant-a")
    aimed = xml.replace(host.plugin.argument(Option(), "tenant-b"), argument)
    assert argument in aimed
    host.libvirtd.define(aimed)
    host.libvirtd.virsh("start", "intruder")
    await host.admit()
    refused = re.compile(r"client_refused group=tenant-a .*cgroup /machine/qemu-\d+-intruder\.")
    async with open_hypervisor(host.libvirtd.uri) as hypervisor:
        await until(lambda: stats(hypervisor, "a1"), lambda stats: stats.zero_pages > 0)
        seen = await until(
            lambda: stats(hypervisor, "intruder"), lambda stats: "announced" in stats.refusal
        )
        assert (seen.state, seen.shared_pages) == ("waiting-for-broker", 0)
    assert refused.search(host.broker.log())
    (session,) = host.broker.control().group("tenant-a")["sessions"]
    assert session["pid"] == host.libvirtd.pid_of("a1")


async def test_the_brokers_list_is_made_true(host: Host) -> None:
    host.start("a1", "tenant-a")
    (true,) = await host.announcements()
    assert true.cgroup.startswith("/machine/qemu-")
    stale = Announcement(uuid="0" * 8 + true.uuid[8:], group="tenant-b", cgroup="/stale")
    await announce(host.control, stale)
    impossible = Announcement(uuid="not one", group="tenant-b", cgroup="/x")
    (problem,) = await reconcile(host.control, [impossible, true])
    assert "uuid" in str(problem)
    (allowed,) = host.broker.control().do("status")["allowed"]
    assert (allowed["uuid"], allowed["group"]) == (true.uuid, "tenant-a")
    with pytest.raises(MemshareError, match="is not the guest's own"):
        find_cgroup("a1", 1 << 20, host.libvirtd.run)
    with pytest.raises(MemshareError, match="its process is not to be found"):
        find_cgroup("absent", 1, host.libvirtd.run)


async def test_changes_are_told_and_a_libvirtd_may_come_and_go(host: Host) -> None:
    told: asyncio.Queue[Change] = asyncio.Queue()
    hypervisor = Hypervisor(host.libvirtd.uri)
    watching = asyncio.create_task(hypervisor.watch(told.put_nowait))

    async def next_is(kind: Kind) -> Change:
        async with asyncio.timeout(60):
            while (change := await told.get()).kind is not kind:
                pass
        return change

    async def seen() -> Domain:
        (guest,) = await hypervisor.domains("default")
        return guest

    try:
        await next_is(Kind.CONNECTED)
        host.start("a1", "tenant-a")
        assert (await next_is(Kind.STARTED)).name == "a1"
        host.libvirtd.virsh("metadata", "a1", "urn:other", "--set", "<x/>", "--key", "o", "--live")
        await host.do("set", "a1", "--live", "--weight", "7")
        assert (await next_is(Kind.METADATA)).name == "a1"
        assert told.empty(), "metadata of others is nobody's business here"
        option = (await seen()).option
        assert option is not None
        assert option.weight == 7

        host.libvirtd.stop()
        assert "ended" in (await next_is(Kind.LOST)).reason
        with pytest.raises(UnreachableError):
            await hypervisor.running()
        host.libvirtd.start()
        await next_is(Kind.CONNECTED)
        assert (await seen()).stats is not None, "QEMU went on, and is found again"
        host.libvirtd.virsh("destroy", "a1")
        assert (await next_is(Kind.STOPPED)).name == "a1"
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def test_a_guest_that_does_not_answer_keeps_nobody_waiting(host: Host) -> None:
    host.start("a1")
    host.start("a2")
    pid = host.libvirtd.pid_of("a1")
    os.kill(pid, 19)  # SIGSTOP
    try:
        async with open_hypervisor(host.libvirtd.uri) as hypervisor:
            found = {guest.name: guest for guest in await hypervisor.domains("default")}
            assert (found["a1"].stats, found["a1"].answered) == (None, False)
            assert found["a2"].stats is not None
            again = {guest.name: guest for guest in await hypervisor.domains("default")}
            assert "has not answered an earlier command" in again["a1"].problem
            assert again["a2"].stats is not None
    finally:
        os.kill(pid, 18)  # SIGCONT


async def test_the_hook_lets_a_guest_come_to_a_host_without_the_plugin(host: Host) -> None:
    host.start("a1")
    state = host.libvirtd.directory / "saved"
    host.libvirtd.virsh("save", "a1", str(state))
    away = host.libvirtd.plugin.rename(host.libvirtd.directory / "away")
    try:
        host.libvirtd.virsh("restore", str(state))
        assert (await host.guests())["a1"].problem == "runs without memshare"
        assert "<memshare:sharing" in host.libvirtd.virsh("dumpxml", "a1")
        code, _, err = await host.memshare("set", "a1", "--live", "--mode", "zero")
        assert code == 5
        assert "was started without memshare" in err
    finally:
        away.rename(host.libvirtd.plugin)
