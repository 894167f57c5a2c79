# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be known of a Windows image without Windows: answers, CD, QEMU's command line, how Setup's end is judged.

Microsoft's rules for answers are written down here from its reference, apart from the recipe that must keep to them.
"""

import asyncio
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from lxml import etree

from memshare.bench import machine
from memshare.bench.machine import Boot
from memshare.bench.progress import Progress
from memshare.clients.qmp import open_monitor
from memshare.errors import MemshareError, UsageError
from memshare.experiment import windows
from memshare.experiment.answers import (
    DRIVERS,
    RECIPE,
    Answers,
    Firmware,
    generalized_answers,
    setup_answers,
)
from memshare.experiment.image import ensure
from memshare.experiment.windows import Request

UNATTEND = "{urn:schemas-microsoft-com:unattend}"
WCM = "{http://schemas.microsoft.com/WMIConfig/2002/State}"
PASSES = [
    "windowsPE",
    "offlineServicing",
    "generalize",
    "specialize",
    "auditSystem",
    "auditUser",
    "oobeSystem",
]
#: In which passes a component may stand, of those that are used.
COMPONENTS = {
    "Microsoft-Windows-International-Core-WinPE": {"windowsPE"},
    "Microsoft-Windows-PnpCustomizationsWinPE": {"windowsPE"},
    "Microsoft-Windows-Setup": {"windowsPE"},
    "Microsoft-Windows-Shell-Setup": {"specialize", "oobeSystem", "auditSystem", "generalize"},
    "Microsoft-Windows-International-Core": {"specialize", "oobeSystem"},
}
#: In which pass an element of such a component is looked at.
ELEMENTS = {
    "DiskConfiguration": "windowsPE",
    "ImageInstall": "windowsPE",
    "UserData": "windowsPE",
    "DriverPaths": "windowsPE",
    "ComputerName": "specialize",
    "OOBE": "oobeSystem",
    "UserAccounts": "oobeSystem",
    "AutoLogon": "oobeSystem",
    "FirstLogonCommands": "oobeSystem",
}
#: Elements that are items of lists, and must say so.
ITEMS = {
    "Disk",
    "CreatePartition",
    "ModifyPartition",
    "PathAndCredentials",
    "MetaData",
    "LocalAccount",
    "SynchronousCommand",
    "RunSynchronousCommand",
}
TEXT_MAX = {"CommandLine": 1024, "Path": 259, "Key": 256, "ComputerName": 15}
ALL_ANSWERS = [
    Answers(firmware=firmware, edition=edition, key=key, locale=locale)
    for firmware in Firmware
    for edition, key, locale in [
        ("1", "", "en-US"),
        ("Windows 11 Enterprise", "AAAAA-BBBBB-CCCCC-DDDDD-EEEEE", "de-DE"),
    ]
]


def local(element: etree._Element) -> str:
    return etree.QName(element).localname


def texts(root: etree._Element, path: str) -> list[str | None]:
    names = "/".join(UNATTEND + name for name in path.split("/"))
    return [element.text for element in root.findall(f".//{names}")]


def check_structure(root: etree._Element) -> None:
    assert root.tag == f"{UNATTEND}unattend"
    passes = [settings.get("pass") or "" for settings in root]
    assert [local(settings) for settings in root] == ["settings"] * len(root)
    assert passes == sorted(set(passes), key=PASSES.index)
    for settings in root:
        names = [component.get("name") or "" for component in settings]
        assert len(set(names)) == len(names)
        for component in settings:
            assert settings.get("pass") in COMPONENTS[component.get("name") or ""]
            assert {key: component.get(key) for key in component.keys() if key != "name"} == {  # noqa: SIM118
                "processorArchitecture": "amd64",
                "publicKeyToken": "31bf3856ad364e35",
                "language": "neutral",
                "versionScope": "nonSxS",
            }
            for element in component:
                assert ELEMENTS.get(local(element), settings.get("pass")) == settings.get("pass")
    for element in root.iter(f"{UNATTEND}*"):
        name = local(element)
        assert (element.get(f"{WCM}action") == "add") == (name in ITEMS), name
        assert len(element) or (element.text or "").strip(), f"{name} is empty"
        assert len(element.text or "") <= TEXT_MAX.get(name, 1 << 20), name


def check_orders(root: etree._Element) -> None:
    for item in (
        "CreatePartition",
        "ModifyPartition",
        "SynchronousCommand",
        "RunSynchronousCommand",
    ):
        orders = texts(root, f"{item}/Order")
        assert orders == [str(number + 1) for number in range(len(orders))], item


@pytest.mark.parametrize("asked", ALL_ANSWERS, ids=str)
def test_answers_are_as_windows_setup_expects_them(asked: Answers) -> None:
    root = etree.fromstring(setup_answers(asked))
    check_structure(root)
    check_orders(root)
    assert [settings.get("pass") for settings in root] == ["windowsPE", "specialize", "oobeSystem"]
    assert texts(root, "UserData/AcceptEula") == ["true"]
    assert texts(root, "ProductKey/Key") == ([asked.key] if asked.key else [])
    assert texts(root, "MetaData/Value") == [asked.edition]
    assert texts(root, "MetaData/Key") == [
        "/IMAGE/INDEX" if asked.edition == "1" else "/IMAGE/NAME"
    ]
    assert set(texts(root, "UILanguage")) == {asked.locale}


@pytest.mark.parametrize(
    ("firmware", "types", "formats"),
    [
        (Firmware.BIOS, ["Primary", "Primary"], {"1": "NTFS", "2": "NTFS"}),
        # The reserved partition cannot be formatted.
        (Firmware.UEFI, ["EFI", "MSR", "Primary"], {"1": "FAT32", "3": "NTFS"}),
    ],
)
def test_the_disk_is_laid_out_for_the_firmware(
    firmware: Firmware, types: list[str], formats: dict[str, str]
) -> None:
    root = etree.fromstring(setup_answers(Answers(firmware=firmware)))
    assert texts(root, "CreatePartition/Type") == types
    numbers = texts(root, "ModifyPartition/PartitionID")
    assert dict(zip(numbers, texts(root, "ModifyPartition/Format"), strict=True)) == formats
    assert texts(root, "ModifyPartition/Active") == (["true"] if firmware is Firmware.BIOS else [])
    # Windows goes to the last partition, which alone takes what is left.
    assert texts(root, "InstallTo/PartitionID") == [str(len(types))]
    assert texts(root, "CreatePartition/Extend") == ["true"]
    last = root.findall(f".//{UNATTEND}CreatePartition")[-1]
    assert last.find(f"{UNATTEND}Extend") is not None
    assert last.find(f"{UNATTEND}Size") is None
    assert set(texts(root, "Disk/DiskID") + texts(root, "InstallTo/DiskID")) == {"0"}
    assert texts(root, "InstallToAvailablePartition") == []  # with InstallTo, Setup fails


def test_each_driver_is_looked_for_on_each_cd() -> None:
    root = etree.fromstring(setup_answers(Answers()))
    paths = texts(root, "DriverPaths/PathAndCredentials/Path")
    assert sorted(paths) == sorted(f"{d}:\\drivers\\{name}" for d in "DEF" for name in DRIVERS)
    values = [e.get(f"{WCM}keyValue") for e in root.iter(f"{UNATTEND}PathAndCredentials")]
    assert len(set(values)) == len(values) == len(paths)


def test_the_one_logon_is_that_of_an_administrator_with_its_password() -> None:
    root = etree.fromstring(setup_answers(Answers()))
    assert texts(root, "AutoLogon/LogonCount") == ["1"]
    assert texts(root, "AutoLogon/Username") == texts(root, "LocalAccount/Name")
    assert texts(root, "LocalAccount/Group") == ["Administrators"]
    assert texts(root, "AutoLogon/Password/Value") == texts(root, "LocalAccount/Password/Value")
    (command,) = texts(root, "SynchronousCommand/CommandLine")
    assert command is not None and command.endswith("-File %d:\\memshare\\firstboot.ps1")


def test_a_generalized_image_sets_up_nothing_and_runs_nothing_again() -> None:
    root = etree.fromstring(generalized_answers(Answers()))
    check_structure(root)
    assert [settings.get("pass") for settings in root] == ["specialize", "oobeSystem"]
    for name in ("AutoLogon", "FirstLogonCommands", "DiskConfiguration"):
        assert not root.findall(f".//{UNATTEND}{name}")


@pytest.fixture(scope="module")
def virtio_iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CD with names as virtio-win's."""
    tmp_path = tmp_path_factory.mktemp("virtio")
    folder = tmp_path / "virtio"
    for driver in DRIVERS:
        for system in ("w11", "2k22"):
            files = folder / driver / system / "amd64"
            files.mkdir(parents=True)
            (files / f"{driver.lower()}.inf").write_text(f"; {driver} of {system}\n")
            (files / f"{driver.lower()}.sys").write_bytes(driver.encode() * 1000)
    (folder / "guest-agent").mkdir()
    for package in windows.PACKAGES:
        (folder / package).write_bytes(package.encode() * 5000)
    iso = tmp_path / "virtio-win.iso"
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-joliet-long", "-o", iso, folder],
        check=True,
        capture_output=True,
    )
    return iso


@pytest.fixture
def request_(tmp_path: Path, virtio_iso: Path) -> Request:
    """Of an installation from a CD that holds nothing."""
    iso = tmp_path / "windows.iso"
    iso.write_bytes(bytes(1 << 20))
    return Request(windows_iso=iso, virtio_iso=virtio_iso, answers=Answers(), accel="tcg")


def read_cd(cd: Path, folder: Path) -> dict[str, bytes]:
    """What is on a CD, by the names that Windows reads: those of Joliet."""
    command = ["xorriso", "-read_fs", "norock", "-osirrox", "on", "-indev", cd]
    subprocess.run([*command, "-extract", "/", folder], check=True, capture_output=True)
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("is_generalized", [False, True])
def test_the_answer_cd_has_everything_that_the_recipe_reads(
    request_: Request, tmp_path: Path, is_generalized: bool
) -> None:
    asked = msgspec.structs.replace(request_, is_generalized=is_generalized)
    cd = tmp_path / "answers.iso"
    windows.make_cd(asked, cd)
    found = read_cd(cd, tmp_path / "read")
    wanted = {
        "Autounattend.xml": setup_answers(asked.answers),
        "memshare/firstboot.ps1": (RECIPE / "firstboot.ps1").read_bytes(),
        "virtio-win-gt-x64.msi": b"virtio-win-gt-x64.msi" * 5000,
        "guest-agent/qemu-ga-x86_64.msi": b"guest-agent/qemu-ga-x86_64.msi" * 5000,
    }
    if is_generalized:
        wanted["memshare/generalized.xml"] = generalized_answers(asked.answers)
    for source in (RECIPE / "programs").iterdir():
        wanted[f"memshare/programs/{source.name}"] = source.read_bytes()
    for driver in DRIVERS:
        wanted[f"drivers/{driver}/{driver.lower()}.inf"] = f"; {driver} of 2k22\n".encode()
        wanted[f"drivers/{driver}/{driver.lower()}.sys"] = driver.encode() * 1000
    assert found == wanted
    label = subprocess.run(["xorriso", "-indev", cd], check=True, capture_output=True, text=True)
    assert f"Volume id    : '{windows.LABEL}'" in label.stderr
    assert [path.name for path in tmp_path.glob("memshare-cd-*")] == []


def test_a_cd_without_the_drivers_is_named(request_: Request, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"virtio-win.iso: no /viostor/2k25/amd64 on it"):
        windows.make_cd(msgspec.structs.replace(request_, drivers="2k25"), tmp_path / "a.iso")


@contextmanager
def stopped_machine(request: Request, folder: Path) -> Iterator[Path]:
    """QEMU with that command line, stopped before its first instruction."""
    windows.make_cd(request, folder / "answers.iso")
    disk = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "20G"], check=True)
    process = subprocess.Popen(
        [*windows.command_line(request, folder), "-S"], stderr=subprocess.PIPE
    )
    try:
        yield folder / "qmp.sock"
        process.wait(60)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, b"")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("firmware", list(Firmware))
async def test_qemu_takes_the_command_line(
    request_: Request, tmp_path: Path, firmware: Firmware
) -> None:
    asked = msgspec.structs.replace(
        request_, answers=Answers(firmware=firmware), ram_bytes=256 << 20
    )
    if firmware is Firmware.UEFI:
        code = tmp_path / "code.fd"
        for file in (code, tmp_path / "variables.fd"):
            file.write_bytes(bytes(256 << 10))
        asked = msgspec.structs.replace(
            asked, firmware_code=code, firmware_variables=tmp_path / "given.fd"
        )
    with stopped_machine(asked, tmp_path) as socket:
        async with asyncio.timeout(60):
            while not socket.exists():
                await asyncio.sleep(0.05)
        async with open_monitor(socket, 60) as monitor:
            assert (await monitor.execute("query-status"))["status"] == "prelaunch"
            blocks = {
                block["device"]: Path(block["inserted"]["file"]).name
                for block in await monitor.execute("query-block")
            }
            chardevs = {char["label"] for char in await monitor.execute("query-chardev")}
            await windows.press_key(tmp_path / "nobody.sock")
            await monitor.execute("quit")
    assert blocks["disk"] == "disk.qcow2"
    assert (blocks["windows"], blocks["answers"]) == ("windows.iso", "answers.iso")
    assert ("variables.fd" in blocks.values()) == (firmware is Firmware.UEFI)
    assert {"agent", "console"} <= chardevs


FAKE_QEMU = """
    import pathlib, re, sys
    line = " ".join(sys.argv)
    console = pathlib.Path(re.search(r"path=(\\S+console.log)", line)[1])
    console.write_text({said!r})
    sys.exit({code})
"""


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, said: str, code: int = 0) -> None:
    """Put something in QEMU's place that says this on its serial port."""
    program = folder / "qemu"
    body = textwrap.dedent(FAKE_QEMU).format(said=said, code=code)
    program.write_text(f"#!/usr/bin/env python3\n{body}")
    program.chmod(0o755)
    monkeypatch.setattr(windows, "QEMU", str(program))


#: Says what follows it on the first serial port, up to a zero, and switches the machine off. 16-bit code, anywhere.
SPEAKER = bytes.fromhex(
    "fc e80000 5e 83c61a"  # cld; where am I; si = the text
    "2eac 84c0 7406 baf803 ee ebf4"  # until the zero: a byte to port 0x3f8
    "ba0406 b80020 ef f4"  # soft-off by ACPI
    "ebfd"
)


def bootable_cd(folder: Path, said: str) -> Path:
    """Make a CD that a machine starts from, in the place of Windows'."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "boot.bin").write_bytes((SPEAKER + said.encode()).ljust(2048, b"\0"))
    iso = folder / "windows.iso"
    subprocess.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4",
         "-o", iso, tree],
        check=True, capture_output=True,
    )  # fmt: skip
    return iso


def test_a_machine_starts_from_the_cd_and_its_good_end_is_an_image(
    request_: Request, tmp_path: Path
) -> None:
    assert len(SPEAKER) == 4 + 0x1A
    iso = bootable_cd(tmp_path, "SeaBIOS\r\nmemshare: ready\r\n")
    asked = msgspec.structs.replace(request_, windows_iso=iso, ram_bytes=64 << 20)
    output = tmp_path / "out" / "windows"
    windows.build(asked, output, 1, Progress())
    image = windows.read_image(output)
    assert sorted(path.name for path in output.iterdir()) == [
        "base.qcow2",
        "console.log",
        "image.json",
        "qemu.err",
    ]
    assert (image.system, image.firmware, image.is_generalized) == ("windows", "bios", False)
    assert image.disk_bytes == (output / "base.qcow2").stat().st_size
    assert image.arguments[:2] == ["-vga", "std"]
    read = ensure(str(output))
    assert (read.kernel, read.files, read.min_ram_bytes) == (None, [output / "base.qcow2"], 2 << 30)
    boot = Boot(None, None, read.disk, "unheard", read.arguments, read.tcg_cpu)
    line = machine.command_line(tmp_path, "guest0", 2 << 30, boot)
    assert line[line.index("-cpu") + 1] == windows.CPU_OF_TCG
    assert "-vga" in line
    assert not {"-kernel", "-initrd", "-append"} & set(line)
    with pytest.raises(UsageError, match="is there already"):
        windows.build(request_, output, 1, Progress())
    with (output / "base.qcow2").open("ab") as disk:
        disk.write(b"more")
    with pytest.raises(UsageError, match=r"base.qcow2: \d+ bytes, not the"):
        windows.read_image(output)


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"image.json: no such file"):
        windows.read_image(tmp_path)
    (tmp_path / "image.json").write_text("{}")
    (tmp_path / "base.qcow2").touch()
    with pytest.raises(UsageError, match=r"image.json: Object missing required field"):
        windows.read_image(tmp_path)


@pytest.mark.parametrize(
    ("console", "problem"),
    [
        ("SeaBIOS\r\nmemshare: ready\r\n", None),
        ("", "it ended without a word of firstboot.ps1"),
        (
            "memshare: error: msiexec.exe ended with code 1603\r\n",
            "error: msiexec.exe ended with code 1603",
        ),
        ("memshare: ready\r\nmemshare: error: sysprep\r\n", "error: sysprep"),
    ],
)
def test_what_the_guest_says_last_decides(console: str, problem: str | None) -> None:
    assert windows.verdict(console) == problem


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [("memshare: error: it", 0, "not installed: error: it"), ("memshare: ready", 3, "exit code 3")],
)
def test_an_installation_that_does_not_end_well_is_no_image(
    monkeypatch: pytest.MonkeyPatch,
    request_: Request,
    tmp_path: Path,
    said: str,
    code: int,
    message: str,
) -> None:
    pretend(monkeypatch, tmp_path, said, code)
    with pytest.raises(MemshareError, match=message):
        windows.build(request_, tmp_path / "windows", 1, Progress())
    assert not (tmp_path / "windows").exists()


def test_uefi_needs_its_firmware(request_: Request, tmp_path: Path) -> None:
    asked = msgspec.structs.replace(request_, answers=Answers(firmware=Firmware.UEFI))
    with pytest.raises(UsageError, match="--firmware-code"):
        windows.build(asked, tmp_path / "windows", 1, Progress())
