# SPDX-License-Identifier: GPL-2.0-or-later
"""What a domain's XML says of sharing, and how it is changed."""

import re
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from memshare.cli.change import Host
from memshare.domain import attachment, option, plugin
from memshare.domain.attachment import NotAttachedError, Wish
from memshare.domain.document import parse, text_of
from memshare.domain.plugin import Plugin
from memshare.errors import HostError, MemshareError
from memshare.model import Mode, Option
from samples import ROOT

GOLDEN = ROOT / "tests/golden/domain"
HOOK = ROOT / "packaging/libvirt/memshare-hook"
PLUGIN = Plugin(path="/usr/lib/memshare/libmemshare-qemu.so")
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def attach(xml: str, wish: Wish | None = None, where: Plugin = PLUGIN) -> str:
    return attachment.attach(xml, wish or Wish(), where, "default")


def usual(_before: str | None) -> tuple[Plugin, str]:
    return PLUGIN, "default"


def domain(inside: str, kind: str = "kvm") -> str:
    return f"<domain type='{kind}'><name>x</name>{inside}<devices/></domain>"


def sharing(attributes: str, inside: str = "") -> str:
    element = f"<m:sharing xmlns:m='{option.NAMESPACE}' {attributes}>{inside}</m:sharing>"
    return domain(f"<metadata>{element}</metadata>")


def meaning(xml: str) -> bytes:
    """The canonical form, comments included; containers with nothing in them mean nothing."""
    root = parse(xml)
    for path in ("metadata", f"{{{QEMU}}}commandline"):
        for element in root.findall(path):
            if len(element) == 0 and not (element.text or "").strip():
                root.remove(element)
    for element in root.iter():
        for name in ("text", "tail"):
            if not (getattr(element, name) or "").strip():
                setattr(element, name, None)
    etree.cleanup_namespaces(root)
    out = BytesIO()
    root.getroottree().write_c14n(out, with_comments=True)
    return out.getvalue()


# Golden files: NAME.xml, and NAME.attached.xml, which attach makes of it.


@pytest.mark.parametrize("name", ["plain", "busy", "older"])
def test_attach_as_in_the_golden_file(name: str) -> None:
    before = (GOLDEN / f"{name}.xml").read_text()
    after = attach(before, Wish(max_rate=5000))
    assert after == (GOLDEN / f"{name}.attached.xml").read_text()
    assert attach(after) == after, "twice is once"
    if name != "older":
        assert attachment.detach(after) == before, "byte for byte"
    else:
        assert "memshare" not in attachment.detach(after)


def test_what_an_attached_domain_says() -> None:
    told = attachment.read(attach((GOLDEN / "busy.xml").read_text(), Wish(min_rate=3)), "default")
    assert told.option == Option(min_rate=3)
    assert told.group == "1f0c9a7e4b5d4c0ea8f2b7d3c6e59012", "nova's project"
    assert told.problem == ""
    named = attach((GOLDEN / "busy.xml").read_text(), Wish(group="other"))
    assert attachment.read(named, "default").group == "other"
    plain = attach((GOLDEN / "plain.xml").read_text())
    assert attachment.read(plain, "host-wide").group == "host-wide"


def test_a_mended_argument_keeps_what_only_its_owner_knows() -> None:
    root = parse(attach((GOLDEN / "older.xml").read_text()))
    argument = plugin.argument_of(root)
    assert argument == f"{PLUGIN.path},group=lab,mode=content,cpu-limit=20"
    assert len(plugin.find(root)) == 1


def test_a_path_with_a_comma_is_said_as_qemu_wants_it() -> None:
    where = Plugin(path="/a,b/libmemshare-qemu.so", runtime_dir="/run/x,y")
    argument = where.argument(Option(mode=Mode.ZERO, max_rate=7), "g")
    assert argument == (
        "/a,,b/libmemshare-qemu.so,group=g,mode=zero,socket=/run/x,,y/g.sock,scan-rate=7"
    )
    assert plugin.is_ours(argument)
    assert plugin.group_in(argument) == "g"
    assert where.argument(Option(mode=Mode.ZERO, max_rate=7), "g", argument) == argument


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("<memoryBacking><nosharepages/></memoryBacking>", "<nosharepages/> in <memoryBacking>"),
        ("<memoryBacking><hugepages/></memoryBacking>", "<hugepages/> in <memoryBacking>"),
        ("<memoryBacking><locked/></memoryBacking>", "<locked/> in <memoryBacking>"),
        ("<memoryBacking><access mode='shared'/></memoryBacking>", "<access mode='shared'/>"),
        ("<memoryBacking><source type='memfd'/></memoryBacking>", "<source type='memfd'/>"),
        ("<cpu><numa><cell id='0' memAccess='shared'/></numa></cpu>", "<cell memAccess='shared'/>"),
        ("<launchSecurity type='sev'/>", "<launchSecurity>: its memory"),
        ("<devices><hostdev mode='subsystem' type='pci'/></devices>", "<hostdev type='pci'>"),
        ("<devices><interface type='vdpa'/></devices>", "<interface type='vdpa'>"),
        ("<devices><disk type='vhostuser'/></devices>", "<disk type='vhostuser'> in <devices>"),
        (
            "<devices><filesystem><driver type='virtiofs'/></filesystem></devices>",
            "<driver type='virtiofs'/> in <filesystem>",
        ),
    ],
)
def test_the_element_at_fault_is_named(inside: str, named: str) -> None:
    with pytest.raises(HostError, match=re.escape(named)):
        attach(domain(inside))


def test_what_is_harmless_is_not_refused() -> None:
    inside = (
        "<memoryBacking><source type='anonymous'/><access mode='private'/></memoryBacking>"
        "<devices><hostdev mode='subsystem' type='usb'/></devices>"
    )
    assert attachment.read(attach(domain(inside)), "default").problem == ""


def test_no_guest_of_qemu() -> None:
    with pytest.raises(HostError, match="<domain type='lxc'>"):
        attach(domain("", "lxc"))


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (sharing("groups='a'"), "groups=...> is unknown"),
        (sharing("group='A'"), "'A' is no group name"),
        (sharing("group=''"), "'' is no group name"),
        (sharing("group='.x'"), "'.x' is no group name"),
        (sharing("mode='all'"), "'all'> is none of off, zero, content"),
        (sharing("min-rate='-1'"), "min-rate='-1'> is not a number"),
        (sharing("max-rate='1e3'"), "max-rate='1e3'> is not a number"),
        (sharing("max-rate='٣'"), "is not a number"),
        (sharing("weight='0'"), "weight='0'> is not a number from 1 to 10000"),
        (sharing("min-rate='2' max-rate='1'"), "min-rate 2 is above max-rate 1"),
        (sharing("", "text"), "has contents"),
        (sharing("", "<x/>"), "has contents"),
        (
            domain(f"<metadata><m:other xmlns:m='{option.NAMESPACE}'/></metadata>"),
            "<memshare:other> is unknown",
        ),
        (
            domain("<metadata>" + 2 * f"<m:sharing xmlns:m='{option.NAMESPACE}'/>" + "</metadata>"),
            "has 2 elements",
        ),
        (
            domain(
                "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.0'/>"
                "</metadata>"
            ),
            "names no projects",
        ),
        (
            domain(
                "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'>"
                "<n:owner><n:project uuid='a/b'/></n:owner></n:instance></metadata>"
            ),
            "'a/b' is no group name",
        ),
        ("<domain", "no XML"),
        ("<volume/>", "its root is <volume>"),
        ("<!DOCTYPE d [<!ENTITY e 'x'>]><domain type='kvm'>&e;</domain>", "document type"),
        ("<domain type='kvm'>\ud800</domain>", "no XML"),
    ],
)
def test_what_is_malformed_is_an_error_and_never_a_default(xml: str, message: str) -> None:
    with pytest.raises(MemshareError, match=re.escape(message)):
        attach(xml)
    told = attachment.read(xml, "default")
    assert told.group is None
    if "nova" not in xml:
        assert message in told.problem


@pytest.mark.parametrize("attributes", ["groups='a'", "mode='x'"])
def test_what_is_malformed_can_be_detached(attributes: str) -> None:
    assert meaning(attachment.detach(sharing(attributes))) == meaning(domain(""))


def test_only_what_is_attached_can_be_set() -> None:
    plain = (GOLDEN / "plain.xml").read_text()
    with pytest.raises(NotAttachedError):
        attachment.amend(plain, Wish(weight=2), usual)
    changed = attachment.amend(attach(plain), Wish(mode=Mode.OFF, weight=2), usual)
    told = attachment.read(changed, "default")
    assert told.option == Option(mode=Mode.OFF, weight=2)
    assert told.argument is not None
    assert "mode=off" in told.argument
    with pytest.raises(MemshareError, match="min-rate 9 is above max-rate 8"):
        attachment.amend(changed, Wish(min_rate=9, max_rate=8), usual)


@pytest.mark.parametrize(
    ("said", "wish", "argument"),
    [
        (Host(), Wish(weight=2), "/opt/{},group=house,mode=content,socket=/srv/odd.sock,x=1"),
        (Host(), Wish(group="b"), "/opt/{},group=b,mode=content,socket=/srv/b.sock,x=1"),
        (Host(group="b"), Wish(), "/opt/{},group=b,mode=content,socket=/srv/b.sock,x=1"),
        (
            Host(plugin_path="/new/libmemshare-qemu.so", runtime_dir="/run/x"),
            Wish(mode=Mode.ZERO),
            "/new/{},group=house,mode=zero,socket=/run/x/house.sock,x=1",
        ),
    ],
)
def test_what_is_not_set_stays_where_it_was(said: Host, wish: Wish, argument: str) -> None:
    before = "file=/opt/libmemshare-qemu.so,group=house,mode=content,socket=/srv/odd.sock,x=1"
    xml = attach((GOLDEN / "plain.xml").read_text())
    root = parse(xml)
    plugin.write(root, before)
    changed = attachment.amend(text_of(root), wish, said.place)
    assert attachment.read(changed, "").argument == argument.format("libmemshare-qemu.so")


def test_a_guest_that_runs_in_the_hosts_group_stays_in_it() -> None:
    running = attachment.attach(
        (GOLDEN / "plain.xml").read_text(), Wish(), PLUGIN, host_group="house"
    )
    changed = attachment.amend_live(running, Wish(weight=2), None)
    assert attachment.read(changed, "").option == Option(weight=2)
    with pytest.raises(HostError, match="was started in group house, not b"):
        attachment.amend_live(running, Wish(), "b")


def test_a_guest_that_runs_changes_its_option_only() -> None:
    plain = (GOLDEN / "plain.xml").read_text()
    with pytest.raises(HostError, match="was started without memshare"):
        attachment.attach_live(plain, Wish(), "default")
    running = attach(plain, Wish(group="a"))
    with pytest.raises(HostError, match="was started in group a, not b"):
        attachment.amend_live(running, Wish(group="b"), "default")
    changed = attachment.amend_live(running, Wish(max_rate=1), "default")
    before, after = (attachment.read(xml, "default") for xml in (running, changed))
    assert (before.argument, before.group) == (after.argument, after.group)
    assert after.option == Option(group="a", max_rate=1)
    idle = attachment.detach_live(changed)
    assert attachment.read(idle, "default").argument == before.argument
    with pytest.raises(NotAttachedError):
        attachment.amend_live(idle, Wish(weight=2), "default")
    again = attachment.attach_live(idle, Wish(group="a", max_rate=1), "default")
    assert attachment.read(again, "default") == after


# Any domain

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=6)
SPACE = st.sampled_from(["", "\n  ", "\n    ", " "])


@st.composite
def elements(draw: st.DrawFn, namespace: str, names: list[str]) -> etree._Element | None:
    """Something of somebody else, or a comment."""
    if draw(st.integers(0, 4)) == 0:
        made: etree._Element = etree.Comment(draw(TEXT).replace("-", "+"))
    else:
        made = etree.Element(
            f"{{{namespace}}}{draw(st.sampled_from(names))}", {"value": draw(TEXT)}
        )
    made.tail = draw(SPACE)
    return made


@st.composite
def domains(draw: st.DrawFn) -> str:
    """A domain with metadata, arguments and comments of others, indented in any way."""
    root = etree.Element("domain", {"type": "kvm"}, draw(st.sampled_from([None, {"qemu": QEMU}])))
    root.text = draw(SPACE)
    contents = [
        ("metadata", draw(st.lists(elements("urn:other", ["a", "b"]), max_size=3))),
        (f"{{{QEMU}}}commandline", draw(st.lists(elements(QEMU, ["arg", "env"]), max_size=4))),
        ("devices", []),
    ]
    for tag, children in draw(st.permutations(contents)):
        if children or draw(st.booleans()):
            element = etree.SubElement(root, tag)
            element.text = draw(SPACE)
            element.extend(children)
            element.tail = draw(SPACE)
    return etree.tostring(root, encoding="unicode")


WISHES = st.builds(
    Wish,
    group=st.none() | st.from_regex(option.GROUP_NAME, fullmatch=True),
    mode=st.sampled_from(Mode),
    min_rate=st.integers(0, 1000),
    max_rate=st.none() | st.integers(1000, option.RATE_MAX),
    weight=st.integers(1, option.WEIGHT_MAX),
)


@given(domains(), WISHES)
def test_attach_twice_is_once_and_detach_undoes_it(xml: str, wish: Wish) -> None:
    attached = attach(xml, wish)
    assert attach(attached, wish) == attached
    assert attach(attached) == attached
    told = attachment.read(attached, "default")
    assert told.option == wish.applied(Option())
    assert told.group == (told.option.group or "default")
    assert told.problem == ""
    assert meaning(attachment.detach(attached)) == meaning(xml)
    assert attachment.detach(attachment.detach(attached)) == attachment.detach(attached)


# The hook, as libvirt calls it

ABSENT, OURS = "/absent/libmemshare-qemu.so", "libmemshare-qemu.so"


def hook(xml: str, *arguments: str) -> str:
    done = subprocess.run(
        [HOOK, "web1", *arguments], input=xml.encode(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr == b"") == (0, xml != "<no")
    return done.stdout.decode()


@pytest.mark.parametrize("name", ["plain", "busy"])
@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_the_hook_drops_the_argument_and_nothing_else(name: str, operation: str) -> None:
    xml = (GOLDEN / f"{name}.xml").read_text()
    arriving = attach(xml, where=Plugin(path=ABSENT))
    staying = hook(arriving, operation, "begin", "-")
    assert "-plugin" in staying or name == "plain"
    told = attachment.read(staying, "default")
    assert (told.option, told.argument) == (Option(), None)
    assert meaning(attachment.detach(staying)) == meaning(xml)


def test_the_hook_leaves_alone_what_can_start_here(tmp_path: Path) -> None:
    here = tmp_path / "a,b"
    here.mkdir()
    (here / OURS).touch()
    plain = (GOLDEN / "plain.xml").read_text()
    present = attach(plain, where=Plugin(path=str(here / OURS)))
    assert hook(present, "migrate", "begin", "-") == ""
    assert hook(plain, "migrate", "begin", "-") == ""
    missing = attach(plain, where=Plugin(path=ABSENT))
    for operation in (
        ("prepare", "begin", "-"),
        ("started", "begin", "-"),
        ("migrate", "end", "-"),
    ):
        assert hook(missing, *operation) == ""


def test_the_hook_stops_no_migration() -> None:
    assert hook("<no", "migrate", "begin", "-") == ""
