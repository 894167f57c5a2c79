# SPDX-License-Identifier: GPL-2.0-or-later
"""What the images' builder reads, names and notices; nothing is built."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from memshare.errors import UsageError
from memshare.experiment import image

GUESTS = image.LINUX.parent
FILES = ("vmlinuz", "initrd", "base.qcow2", "image.json", "packages")
MANIFEST = {
    "name": "minimal",
    "suite": "trixie",
    "about": "nothing",
    "kernel": "6.12",
    "kernel_options": "init_on_free=1",
    "min_ram": "256M",
    "packages": 2,
    "packages_sha256": "00",
    "disk_sha256": "00",
    "disk_bytes": 4,
    "root_bytes": 4,
    "build_seconds": 1,
}


def show(name: str, guests: Path = GUESTS) -> dict[str, str]:
    """Return what the builder would build."""
    done = subprocess.run(
        [str(guests / "linux" / "build.sh"), "--show", name],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UsageError(done.stderr)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    """A copy of the recipes, to be changed."""
    return Path(shutil.copytree(GUESTS, tmp_path / "guests"))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image that was built, in a cache of its own; and an mmdebstrap that counts how often it is called."""
    monkeypatch.setenv("MEMSHARE_CACHE", str(tmp_path / "cache"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (
        ("id", "echo 0"),
        ("mmdebstrap", f'echo called >>{tmp_path}/calls; for last; do :; done; : >"$last"'),
    ):
        program = programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    folder = Path(show("demo")["folder"])
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(name)
    sums = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in FILES]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def build() -> "subprocess.CompletedProcess[str]":
    """Let the builder find or build the demo's image."""
    return subprocess.run(
        [str(image.LINUX / "build.sh")], check=False, capture_output=True, text=True
    )


def calls(tmp_path: Path) -> int:
    """How often a root file system was begun."""
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("name", image.recipes())
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_each_recipe_is_whole(name: str, suite: str) -> None:
    shown = show(f"{name}@{suite}")
    assert (shown["name"], shown["suite"]) == (name, suite)
    assert shown["about"] and '"' not in shown["about"]
    assert image.parse_size(shown["min_ram"])
    assert image.parse_size(shown["disk"])
    assert not shown["hook"] or os.access(image.LINUX / "recipes" / f"{shown['hook']}.sh", os.X_OK)
    assert ("qemu-guest-agent" in shown["packages"]) == (shown["agent"] == "qemu")


def test_images_of_the_same_media_have_the_same_packages() -> None:
    packages = [
        sorted(f"{shown['packages']} {shown['packages_later']}".split())
        for shown in (show("same-media-a"), show("same-media-b"))
    ]
    assert packages[0] == packages[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "no recipe nothing; there are: database demo"),
        ("minimal@sid", "no suite sid"),
        ("../minimal", "not a name"),
        ("min imal", "not a name"),
    ],
)
def test_what_is_no_image_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        show(name)


@pytest.mark.parametrize("line", ["package=nginx", "agent=none"])
def test_a_recipe_with_a_wrong_word_is_refused(guests: Path, line: str) -> None:
    recipe = guests / "linux" / "recipes" / "minimal.conf"
    recipe.write_text(f"{recipe.read_text()}{line}\n")
    with pytest.raises(UsageError, match="recipes/minimal.conf: .*" + line.split("=")[0]):
        show("minimal", guests)


def test_an_image_is_named_after_what_goes_into_it(guests: Path) -> None:
    names = ("demo", "minimal", "minimal@trixie", "webserver")

    def folders() -> list[str]:
        return [Path(show(name, guests)["folder"]).name for name in names]

    before = folders()
    assert len(set(before)) == len(names)
    assert folders() == before
    for path, changed in (
        ("linux/initrd-init", names),
        ("agents/touch.c", names[1:]),
        ("linux/agent", names[:1]),
        ("linux/recipes/webserver.sh", names[3:]),
        ("linux/recipes/minimal.conf", names[1:3]),
    ):
        with (guests / path).open("a") as file:
            file.write("min_ram=300M\n" if path.endswith("conf") else "# changed\n")
        after = folders()
        assert tuple(n for n, a, b in zip(names, before, after, strict=True) if a != b) == changed
        before = after


def test_an_image_that_is_whole_is_not_built_again(cached: Path, tmp_path: Path) -> None:
    done = build()
    assert done.returncode == 0
    assert Path(done.stdout.strip()) == cached.resolve()
    assert calls(tmp_path) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_image_is_built_again(cached: Path, tmp_path: Path, name: str) -> None:
    (cached / name).write_text("damaged")
    assert f"damaged, building it again: {name}: FAILED" in build().stderr
    assert calls(tmp_path) == 1
    assert not (cached / "SHA256SUMS").exists()


def test_a_build_that_was_broken_off_goes_on(cached: Path, tmp_path: Path) -> None:
    (cached / "initrd").unlink()
    first = build()  # ends where there is no kernel in what was unpacked
    assert first.returncode != 0
    assert (cached / "root.tar").exists()
    assert "1/3" not in build().stderr
    assert calls(tmp_path) == 1


def test_an_image_is_read_from_its_folder(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "image.json").write_text(json.dumps(MANIFEST))
    found = image.ensure(str(tmp_path))
    assert (found.name, found.min_ram_bytes) == ("minimal@trixie", 256 << 20)
    assert found.disk == tmp_path / "base.qcow2"
    assert found.kernel_options == "init_on_free=1"
    assert found.facts == MANIFEST
    (tmp_path / "initrd").unlink()
    with pytest.raises(UsageError, match="initrd: not there"):
        image.ensure(str(tmp_path))


def test_what_is_no_image_of_ours_is_named() -> None:
    with pytest.raises(UsageError, match="no image 'windows'"):
        image.ensure("windows")
    with pytest.raises(UsageError, match=r"/nowhere/image\.json: no such file"):
        image.ensure("/nowhere")


def test_guests_of_the_same_media_get_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ensure", lambda name: name)
    assert image.ensure_all("same-media") == ["same-media-a", "same-media-b"]
    assert image.ensure_all("same-media@trixie") == ["same-media-a@trixie", "same-media-b@trixie"]
    assert image.ensure_all("minimal@trixie") == ["minimal@trixie"]


def make_disk(tar: Path, disk: Path, *mkfs: str) -> bytes:
    """Make a disk as the builder does."""
    disk.parent.mkdir()
    subprocess.run(
        [str(image.LINUX / "disk.sh"), str(tar), "name", "16M", str(disk), *mkfs],
        check=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1735689600"},
    )
    return disk.read_bytes()


def test_a_disk_depends_on_what_it_is_made_from_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for name in ("a/file", "a.conf", "z"):
        (root / name).write_bytes(os.urandom(5000))
    tar = tmp_path / "root.tar"
    subprocess.run(["tar", "-cf", str(tar), "-C", str(root), "."], check=True)
    first = make_disk(tar, tmp_path / "1" / "disk")
    assert make_disk(tar, tmp_path / "2" / "disk") == first
    other = make_disk(tar, tmp_path / "3" / "disk", "-I", "512", "-b", "4096")
    content = (root / "z").read_bytes()[:1024]  # a block of the first
    assert -1 != other.find(content) != first.find(content) != -1


def test_two_root_file_systems_are_never_mixed(cached: Path, tmp_path: Path) -> None:
    """As when a build was broken off after it had removed what it was made of."""
    (cached / "SHA256SUMS").unlink()
    assert "2/3" in build().stderr
    assert calls(tmp_path) == 1
    assert not (cached / "base.qcow2").exists()


def test_a_build_that_was_broken_off_at_its_end_goes_on(cached: Path, tmp_path: Path) -> None:
    (cached / "SHA256SUMS").unlink()
    (cached / "root.tar").touch()
    kernel = cached / "boot" / "kernel" / "boot" / "vmlinuz-6"
    kernel.parent.mkdir(parents=True)
    kernel.touch()
    (cached / "boot" / "packages").write_text("one 1\n")
    breaker = tmp_path / "bin" / "rm"
    breaker.write_text('#!/bin/sh\ncase $* in *root.tar*) exit 1 ;; esac\nexec /bin/rm "$@"\n')
    breaker.chmod(0o755)
    assert build().returncode != 0
    assert (cached / "packages").read_text() == "one 1\n"
    breaker.unlink()
    assert build().returncode == 0
    assert json.loads((cached / "image.json").read_text())["packages"] == 1
    assert not (cached / "root.tar").exists()
    assert build().returncode == 0
    assert calls(tmp_path) == 0
