# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a Windows image from the operator's own CDs, unattended: `./dev windows`.

    Windows CD + virtio-win CD -> answer CD -> plain QEMU: Setup, firstboot.ps1, shutdown -> base.qcow2, image.json

Setup takes its answers, and firstboot.ps1 its programs, from a second CD that is made here (see answers.py and
guests/windows). The guest ends by itself, and says on its serial port how that went. Nothing is downloaded.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

from memshare.bench.machine import QEMU, end_process, run
from memshare.bench.progress import Progress
from memshare.cli import run as run_command
from memshare.clients.qmp import open_monitor
from memshare.errors import HostError, MemshareError, UnreachableError, UsageError
from memshare.experiment.answers import (
    DRIVER_FOLDER,
    DRIVERS,
    RECIPE,
    Answers,
    Firmware,
    generalized_answers,
    setup_answers,
)

LABEL = "MEMSHARE"
#: Of the virtio-win CD, beside the drivers: what firstboot.ps1 installs.
PACKAGES = ("virtio-win-gt-x64.msi", "guest-agent/qemu-ga-x86_64.msi")
AGENT_PORT = "org.qemu.guest_agent.0"
READY = "memshare: ready"
SPEECH = "memshare: "
#: For so long a key is pressed now and then: UEFI starts from a CD only then.
KEY_SECONDS = 40.0
LOOK_SECONDS = 1.0
#: `max` of TCG has five-level page tables, which not every Windows starts with.
CPU_OF_TCG = "max,la57=off"
CPU_OF_KVM = "host,hv_relaxed,hv_vapic,hv_time,hv_spinlocks=0x1fff"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to install from what. drivers names a folder of each driver on the virtio-win CD: w10, w11, 2k19, 2k22, 2k25.

    firmware_code and firmware_variables are OVMF's files, for UEFI only.
    """

    windows_iso: Path
    virtio_iso: Path
    answers: Answers
    drivers: str = "2k22"
    is_generalized: bool = False
    accel: str = "kvm"
    ram_bytes: int = 4 << 30
    disk_bytes: int = 40 << 30
    processors: int = 2
    display: str = "none"
    firmware_code: Path | None = None
    firmware_variables: Path | None = None


class WindowsImage(msgspec.Struct, frozen=True, kw_only=True):
    """image.json. A guest starts from the disk: there is no kernel to name.

    arguments are those of QEMU's that a guest from this image needs besides the disk and its agent's port, tcg_cpu is the
    processor that it needs where there is no KVM.
    """

    system: str
    name: str
    about: str
    firmware: Firmware
    is_generalized: bool
    arguments: list[str]
    tcg_cpu: str
    min_ram: str
    windows_iso: str
    virtio_iso: str
    disk_sha256: str
    disk_bytes: int
    build_seconds: int


def make_cd(request: Request, cd: Path) -> None:
    """Make the answer CD: answers, drivers, packages, firstboot.ps1 and its programs."""
    with tempfile.TemporaryDirectory(prefix="memshare-cd-", dir=cd.parent) as name:
        folder = Path(name)
        (folder / DRIVER_FOLDER).mkdir()
        (folder / "guest-agent").mkdir()
        wanted = {
            f"{driver}/{request.drivers}/amd64": f"{DRIVER_FOLDER}/{driver}" for driver in DRIVERS
        } | {package: package for package in PACKAGES}
        for source, target in wanted.items():
            extract(request.virtio_iso, source, folder / target)
        shutil.copytree(RECIPE / "programs", folder / "memshare" / "programs")
        shutil.copy(RECIPE / "firstboot.ps1", folder / "memshare" / "firstboot.ps1")
        (folder / "Autounattend.xml").write_bytes(setup_answers(request.answers))
        if request.is_generalized:
            answers = generalized_answers(request.answers)
            (folder / "memshare" / "generalized.xml").write_bytes(answers)
        # Joliet, since Windows reads no Rock Ridge, and capital letters of 8 and 3 are not the names that are asked for.
        run("xorriso", "-as", "mkisofs", "-quiet", "-J", "-joliet-long", "-V", LABEL,
            "-o", str(cd), str(folder))  # fmt: skip


def extract(iso: Path, source: str, target: Path) -> None:
    """Copy a file or folder out of a CD image."""
    try:
        run("xorriso", "-osirrox", "on", "-indev", str(iso), "-extract", f"/{source}", str(target))
    except MemshareError as error:
        raise UsageError(f"{iso}: no /{source} on it", "is it a virtio-win CD?") from error
    # Files of a CD are read-only, and so would be the folder that is removed afterwards.
    run("chmod", "-R", "u+rwX", str(target))


def machine_arguments(
    firmware: Firmware, code: Path | None, variables: Path | None, *, is_kept: bool
) -> list[str]:
    """Return what a guest of that firmware needs, at its installation and ever after. Pure.

    The installation keeps what the firmware writes to its variables; guests start from one file, and write none of it.
    """
    # Windows that starts from BIOS wants a screen, if only one that nobody sees; its clock is local time.
    arguments = ["-vga", "std", "-rtc", "base=localtime"]
    if firmware is Firmware.UEFI:
        arguments += [
            "-drive", f"if=pflash,format=raw,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,file={variables},snapshot={'off' if is_kept else 'on'}",
        ]  # fmt: skip
    return arguments


def command_line(request: Request, folder: Path) -> list[str]:
    """Return how QEMU is started; disk, answer CD, sockets and the console's log are in folder. Pure."""
    variables = folder / "variables.fd" if request.firmware_variables else None
    is_kvm = request.accel == "kvm"
    return [
        QEMU, "-name", "windows", "-machine", "pc", "-accel", request.accel,
        "-cpu", CPU_OF_KVM if is_kvm else CPU_OF_TCG, "-smp", str(request.processors),
        "-m", f"{request.ram_bytes >> 20}M", "-nodefaults", "-no-user-config", "-display", request.display,
        *machine_arguments(
            request.answers.firmware, request.firmware_code, variables, is_kept=True
        ),
        # The disk is tried first: empty as it is, that leads to the CD at the first start, and only then.
        "-drive", f"if=none,id=disk,file={folder}/disk.qcow2,format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk,bootindex=1",
        "-drive", f"if=none,id=windows,file={request.windows_iso},format=raw,media=cdrom,readonly=on",
        "-device", "ide-cd,bus=ide.0,unit=0,drive=windows,bootindex=2",
        "-drive", f"if=none,id=answers,file={folder}/answers.iso,format=raw,media=cdrom,readonly=on",
        "-device", "ide-cd,bus=ide.1,unit=0,drive=answers",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={folder}/agent.sock,server=on,wait=off",
        "-device", f"virtserialport,chardev=agent,name={AGENT_PORT}",
        "-device", "virtio-balloon-pci",
        "-chardev", f"file,id=console,path={folder}/console.log", "-serial", "chardev:console",
        "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
    ]  # fmt: skip


def verdict(console: str) -> str | None:
    """Return why the image is no good, by what the guest said last; None if it is. Pure."""
    said = [line.strip() for line in console.splitlines() if line.strip().startswith(SPEECH)]
    if not said:
        return "it ended without a word of firstboot.ps1"
    return None if said[-1] == READY else said[-1].removeprefix(SPEECH)


async def press_key(socket: Path) -> None:
    """Press the space bar; a monitor that is not there yet is no matter."""
    try:
        async with open_monitor(socket, LOOK_SECONDS) as monitor:
            await monitor.execute("send-key", keys=[{"type": "qcode", "data": "spc"}])
    except UnreachableError:
        return


async def install(request: Request, folder: Path, hours: float, progress: Progress) -> None:
    """Run Setup and firstboot.ps1 on the disk in folder; raises when that did not end well."""
    with (folder / "qemu.err").open("wb") as errors:
        try:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig=KILL", *command_line(request, folder)),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"setpriv: {(error.strerror or '').lower()}") from error
    try:
        started = time.monotonic()
        while process.returncode is None:
            seconds = time.monotonic() - started
            if seconds > hours * 3600:
                raise MemshareError(
                    f"Windows was not installed within {hours:g} h",
                    "see what it waits for: --display vnc=localhost:1",
                )
            if request.answers.firmware is Firmware.UEFI and seconds < KEY_SECONDS:
                await press_key(folder / "qmp.sock")
            held = (folder / "disk.qcow2").stat().st_blocks * 512
            progress.update(f"Windows Setup: {held >> 20} MiB on the disk")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await process.wait()
            except TimeoutError:
                continue
    finally:
        await end_process(process)
    if process.returncode:
        words = (folder / "qemu.err").read_text(errors="replace").strip().splitlines()[-1:]
        raise MemshareError(f"QEMU: {words[0] if words else f'exit code {process.returncode}'}")
    if problem := verdict((folder / "console.log").read_text(errors="replace")):
        raise MemshareError(f"Windows was not installed: {problem}", f"{folder} is kept")


def build(request: Request, output: Path, hours: float, progress: Progress) -> None:
    """Build the image into a folder that must not exist; what was begun is beside it."""
    if output.exists():
        raise UsageError(f"{output}: is there already")
    for needed in (request.windows_iso, request.virtio_iso):
        if not needed.is_file():
            raise UsageError(f"{needed}: not there")
    if request.answers.firmware is Firmware.UEFI and not (
        request.firmware_code and request.firmware_variables
    ):
        raise UsageError(
            "uefi needs --firmware-code and --firmware-variables", "apt-get install ovmf"
        )
    started = time.monotonic()
    folder = output.with_name(output.name + ".part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    progress.update("making the answer CD")
    make_cd(request, folder / "answers.iso")
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        str(folder / "disk.qcow2"),
        str(request.disk_bytes),
    )
    if request.firmware_variables:
        shutil.copy(request.firmware_variables, folder / "variables.fd")
    asyncio.run(cancellable(request, folder, hours, progress))
    progress.update("packing the disk")
    base = folder / "base.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", str(folder / "disk.qcow2"), str(base))
    for name in ("disk.qcow2", "answers.iso", "qmp.sock", "agent.sock"):
        (folder / name).unlink(missing_ok=True)
    write_manifest(request, folder, output, round(time.monotonic() - started))
    folder.rename(output)


async def cancellable(request: Request, folder: Path, hours: float, progress: Progress) -> None:
    """Install so that SIGTERM ends it as Ctrl-C does: QEMU first."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await install(request, folder, hours, progress)


def write_manifest(request: Request, folder: Path, final: Path, seconds: int) -> None:
    """Write image.json about the disk in folder, which will be at final."""
    variables = final / "variables.fd" if request.firmware_variables else None
    with (folder / "base.qcow2").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        length = os.fstat(file.fileno()).st_size
    image = WindowsImage(
        system="windows",
        name="windows",
        about=f"{request.windows_iso.name}, image {request.answers.edition}",
        firmware=request.answers.firmware,
        is_generalized=request.is_generalized,
        arguments=machine_arguments(
            request.answers.firmware, request.firmware_code, variables, is_kept=False
        ),
        tcg_cpu=CPU_OF_TCG,
        min_ram="2G",
        windows_iso=request.windows_iso.name,
        virtio_iso=request.virtio_iso.name,
        disk_sha256=digest,
        disk_bytes=length,
        build_seconds=seconds,
    )
    (folder / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(image)) + b"\n")


def is_image(folder: Path) -> bool:
    """Whether that folder's image.json is about Windows."""
    try:
        data = msgspec.json.decode((folder / "image.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(data, dict) and data.get("system") == "windows"


def read_image(folder: Path) -> WindowsImage:
    """Read about an image that was built; raises UsageError when it is not whole."""
    path = folder / "image.json"
    try:
        image = msgspec.json.decode(path.read_bytes(), type=WindowsImage)
        length = (folder / "base.qcow2").stat().st_size
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or '').lower()}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    if length != image.disk_bytes:
        raise UsageError(
            f"{folder}/base.qcow2: {length} bytes, not the {image.disk_bytes} of {path}"
        )
    return image


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--windows-iso", type=click.Path(path_type=Path), required=True)
@click.option("--virtio-iso", type=click.Path(path_type=Path), required=True)
@click.option("--drivers", default="2k22", show_default=True, help="w10, w11, 2k19, 2k22, 2k25.")
@click.option("--edition", default="1", show_default=True, help="Number or name of the image.")
@click.option("--key", default="", help="Product key, where the CD asks for one.")
@click.option("--locale", default="en-US", show_default=True)
@click.option("--firmware", type=click.Choice([f.value for f in Firmware]), default="bios")
@click.option("--firmware-code", type=click.Path(path_type=Path))
@click.option("--firmware-variables", type=click.Path(path_type=Path))
@click.option(
    "--sysprep", is_flag=True, help="Generalize: each clone becomes a machine of its own."
)
@click.option("--accel", type=click.Choice(["kvm", "tcg"]), default="kvm", show_default=True)
@click.option("--disk-gib", type=click.IntRange(20), default=40, show_default=True)
@click.option("--display", default="none", show_default=True, help="As QEMU's -display.")
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=4.0, show_default=True)
def main(
    output: Path,
    windows_iso: Path,
    virtio_iso: Path,
    drivers: str,
    edition: str,
    key: str,
    locale: str,
    firmware: str,
    firmware_code: Path | None,
    firmware_variables: Path | None,
    sysprep: bool,
    accel: str,
    disk_gib: int,
    display: str,
    hours: float,
) -> None:
    """Install Windows unattended and keep the disk as the image in folder OUTPUT."""
    request = Request(
        windows_iso=windows_iso.absolute(),
        virtio_iso=virtio_iso.absolute(),
        answers=Answers(firmware=Firmware(firmware), edition=edition, key=key, locale=locale),
        drivers=drivers,
        is_generalized=sysprep,
        accel=accel,
        disk_bytes=disk_gib << 30,
        display=display,
        firmware_code=firmware_code and firmware_code.absolute(),
        firmware_variables=firmware_variables,
    )
    progress = Progress()
    try:
        build(request, output.absolute(), hours, progress)
    finally:
        progress.end()
    print(f"written: {output}")


if __name__ == "__main__":
    run_command(main, sys.argv[1:], "./dev windows")
