# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that guests boot from: found, or built by `guests/linux/build.sh`, which also verifies what is there.

An image is a folder with vmlinuz, initrd and base.qcow2, and image.json about them. Guests never write to it: each has
an overlay of its own.
"""

from pathlib import Path
from typing import Any

import msgspec

from memshare.bench.fleet import build_image
from memshare.errors import UsageError
from memshare.experiment import windows
from memshare.experiment.plan import parse_size

LINUX = Path(__file__).resolve().parents[3] / "guests" / "linux"
#: The image of a plan whose guests get one or the other in turn.
SAME_MEDIA = "same-media"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest boots from: a kernel or, as Windows does, its disk.

    kernel_options go on its kernel's command line, facts into the report; arguments and tcg_cpu are as in machine.Boot.
    """

    name: str
    folder: Path
    kernel: Path | None
    initrd: Path | None
    disk: Path  # qcow2
    kernel_options: str
    min_ram_bytes: int
    facts: dict[str, Any]
    arguments: tuple[str, ...] = ()
    tcg_cpu: str = "qemu64"

    @property
    def files(self) -> list[Path]:
        """What a guest reads."""
        return [file for file in (self.kernel, self.initrd, self.disk) if file]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """image.json."""

    name: str
    suite: str
    about: str
    kernel: str
    kernel_options: str
    min_ram: str
    packages: int
    packages_sha256: str
    disk_sha256: str
    disk_bytes: int
    root_bytes: int
    build_seconds: int


def ensure(name: str) -> Image:
    """Find or build an image by the name of its recipe, such as minimal or minimal@trixie, or the path of its folder.

    Its progress goes to stderr. Raises UsageError when there is no such recipe.
    """
    if "/" in name:
        folder = Path(name)
        return read_windows(folder) if windows.is_image(folder) else read(folder)
    recipe = name.partition("@")[0]
    if not (LINUX / "recipes" / f"{recipe}.conf").is_file():
        raise UsageError(f"no image {name!r}", f"there are: {' '.join(recipes())}")
    return read(build_image([str(LINUX / "build.sh"), name]))


def ensure_all(name: str) -> list[Image]:
    """Return the images that a plan's guests get in turn: one, but for same-media."""
    recipe, at, suite = name.partition("@")
    if recipe != SAME_MEDIA:
        return [ensure(name)]
    return [ensure(f"{recipe}-{which}{at}{suite}") for which in "ab"]


def recipes() -> list[str]:
    """Name all recipes."""
    return sorted(path.stem for path in (LINUX / "recipes").glob("*.conf"))


def read(folder: Path) -> Image:
    """Read about an image that exists; raises UsageError."""
    path = folder / "image.json"
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or '').lower()}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    image = Image(
        name=manifest.name if manifest.suite == "bookworm" else f"{manifest.name}@{manifest.suite}",
        folder=folder,
        kernel=folder / "vmlinuz",
        initrd=folder / "initrd",
        disk=folder / "base.qcow2",
        kernel_options=manifest.kernel_options,
        min_ram_bytes=parse_size(manifest.min_ram),
        facts=msgspec.to_builtins(manifest),
    )
    for file in image.files:
        if not file.is_file():
            raise UsageError(f"{file}: not there")
    return image


def read_windows(folder: Path) -> Image:
    """Read about an image that `./dev windows` has made; raises UsageError."""
    built = windows.read_image(folder)
    return Image(
        name=built.name,
        folder=folder,
        kernel=None,
        initrd=None,
        disk=folder / "base.qcow2",
        kernel_options="",
        min_ram_bytes=parse_size(built.min_ram),
        facts=msgspec.to_builtins(built),
        arguments=tuple(built.arguments),
        tcg_cpu=built.tcg_cpu,
    )
