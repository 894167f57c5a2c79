# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/operations.md, done as it says: each of its console blocks, in order, in one shell of a machine of its own.

The machine has a real libvirtd, and three guests of it that the document speaks of. What pip would fetch from
the network are the packages of the tests' own environment.
"""

import os
import re
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.lib.libvirtd import domain_xml
from tests.lib.machine import Machine
from tests.lib.transcript import Step, blocks_of

from memshare.config import Config

pytestmark = pytest.mark.full_hash

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/operations.md"
BLOCKS = blocks_of(DOCUMENT.read_text())
DEADLINE_SECONDS = 120.0

#: What only tells, and what waits for nobody: looked at again until it shows what the document shows.
LOOKS = re.compile(
    r"(memshare (audit|doctor|explain|fits|list|show|status|top)|curl|grep|virsh (list|domstate))\b"
)
#: What needs a systemd that runs, which a container of CI has not: shown, and not executed.
SYSTEMD = re.compile(r"\$ (systemctl|journalctl) ")

GUESTS = ("web1", "web2", "web3")

# Fills 96 pages from 128 KiB on, each with its number; sleeps until the power button is pressed, and switches off.
BOOT_SECTOR = bytes.fromhex(
    "31c0 8ed0 bc007c"  # xor ax, ax; mov ss, ax; mov sp, 0x7c00
    "bb0020"  # mov bx, 0x2000
    "8ec3 89d8 31ff b90008 fc f3ab"  # page: mov es, bx; mov ax, bx; xor di, di; mov cx, 2048; cld; rep stosw
    "80c701 81fb0080 72eb"  # add bh, 1; cmp bx, 0x8000; jb page
    "ba0206 b80001 ef"  # mov dx, 0x602; mov ax, 0x100; out dx, ax: the button counts
    "fbf4 ba0006 ed f6c401 74f5"  # wait: sti; hlt; mov dx, 0x600; in ax, dx; test ah, 1; jz wait
    "b204 b80020 ef ebed"  # mov dl, 4; mov ax, 0x2000; out dx, ax; jmp wait
)
DISK = """<disk type='file' device='disk'>
      <source file='{path}'/>
      <target dev='hda' bus='ide'/>
    </disk>"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The machine, its guests shut off."""
    scripts = Path(sys.executable).parent
    with Machine(
        ROOT,
        PATH=f"{os.environ['PATH']}:{scripts}",
        PYTHONPATH=sysconfig.get_path("purelib"),
        PIP_NO_BUILD_ISOLATION="0",  # which means yes
        CFLAGS="-O0",  # it is compiled twice here
    ) as machine:
        sector = machine.directory / "sector"
        sector.write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa")
        machine.do("mkdir -p /var/lib/libvirt/images")
        for name in GUESTS:
            disk = f"/var/lib/libvirt/images/{name}.img"
            machine.do(f"cp {sector} {disk}")
            machine.write(f"{name}.xml", domain_xml(name, disk=DISK.format(path=disk)))
            machine.do(f"virsh define {name}.xml && rm {name}.xml")
        machine.do("virsh start web2")
        yield machine


def perform(machine: Machine, step: Step) -> None:
    """Type it; what it prints must be what the document shows."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        code, output = machine.run(step.command)
        if code == 0 and step.is_shown_by(output):
            return
        if not LOOKS.match(step.command) or time.monotonic() > deadline:
            pytest.fail(
                f"{DOCUMENT.name}:{step.line}: {step.command}exit code {code}; the document shows\n"
                f"{step.shown}and it prints\n{output}"
            )


@pytest.mark.timeout(1200)  # it compiles everything twice; each command has a deadline of its own
def test_each_console_block_does_what_the_document_says(machine: Machine) -> None:
    for block in BLOCKS:
        if block.language == "console":
            for step in block.steps():
                perform(machine, step)


def test_whatever_is_typed_is_executed_or_needs_systemd() -> None:
    text = DOCUMENT.read_text()
    assert {block.language for block in BLOCKS} <= {"console", "systemd", "toml"}
    for block in BLOCKS:
        if block.language == "console":
            assert block.steps()
        elif block.language == "systemd":
            assert all(SYSTEMD.match(line) for line in block.text.splitlines()), block
    typed = sum(len(block.steps()) for block in BLOCKS if block.language != "toml")
    assert typed == len(re.findall(r"^\s*\$ ", text, re.MULTILINE))


@pytest.mark.parametrize("text", [block.text for block in BLOCKS if block.language == "toml"])
def test_the_daemon_takes_each_example_of_its_configuration(text: str) -> None:
    msgspec.convert(tomllib.loads(text), Config)
