# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU from a Debian suite, unpacked beside the host's own.

The packages come with all their libraries and are never installed: apt works on lists, a status file
and an archive folder of its own below the target, so that nothing of the host's apt or dpkg changes.
apt verifies everything against Debian's archive keys. A wrapper starts the unpacked binary with the
unpacked dynamic linker; what QEMU loads later, our plugin among it, gets the unpacked libraries too.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

#: Which suite has which QEMU. A suite that has moved on is an error, not another test.
SUITES = {"7.2": "bookworm", "10.0": "trixie", "11.1": "sid"}

BINARY = "qemu-system-x86_64"
#: The emulator, and what our plugin needs that the emulator does not.
PACKAGES = ("qemu-system-x86", "libxxhash0")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
#: With /usr merged, as in every supported suite, packages may name either side.
MERGED = ("bin", "lib", "lib64", "sbin")

WRAPPER = f"""\
#!/bin/sh
root=$(cd "$(dirname "$0")" && pwd)/root
export QEMU_MODULE_DIR="$root/{LIBRARIES}/qemu"
exec "$root/lib64/ld-linux-x86-64.so.2" --argv0 "$0" --library-path "$root/{LIBRARIES}" \\
    "$root/usr/bin/{BINARY}" -L "$root/usr/share/seabios" -L "$root/usr/lib/ipxe/qemu" \\
    -L "$root/usr/share/qemu" "$@"
"""


class CompatError(Exception):
    """A QEMU that cannot be had."""


def run(*command: str | Path, **environment: str) -> str:
    """Run to the end and return stdout; what failed is one error with what was said."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise CompatError(f"{command[0]} failed with {done.returncode}: {said}")
    return done.stdout.decode()


def host_mirror() -> str:
    """Where the host's apt finds Debian's main archive."""
    sites = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Created-By: Packages", "Origin: Debian", "Component: main"),
    ).split()
    return next((site for site in sites if "security" not in site), MIRROR)


def write_configuration(state: Path, suite: str) -> Path:
    """Give apt a world of its own below state; only how to reach the network is the host's."""
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {host_mirror()} {suite} main\n")
    acquire = [
        line for line in run("apt-config", "dump").splitlines() if line.startswith("Acquire")
    ]
    directories = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Parts": "/dev/null",
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        # apt would otherwise give the folders to a user who may not reach them.
        "APT::Sandbox::User": "root",
    }
    configuration = state / "apt.conf"
    configuration.write_text(
        "\n".join([*acquire, *(f'{key} "{value}";' for key, value in directories.items()), ""])
    )
    return configuration


def download(state: Path, suite: str) -> list[Path]:
    """Fetch the packages and all that they depend on."""
    if not KEYRING.exists():
        raise CompatError(f"{KEYRING} is missing (package debian-archive-keyring)")
    environment = {"APT_CONFIG": str(write_configuration(state, suite)), "LC_ALL": "C"}
    run("apt-get", "update", **environment)
    run(
        *("apt-get", "install", "--yes", "--download-only", "--no-install-recommends"),
        *PACKAGES,
        **environment,
    )
    return sorted((state / "archives").glob("*.deb"))


def unpack(packages: list[Path], root: Path) -> None:
    """Extract the packages into one tree. No package's script runs."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        # Not dpkg-deb --extract: it would put a directory in the place of a link to one.
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            subprocess.run(
                ["tar", "--extract", "--keep-directory-symlink", "--directory", str(root)],
                stdin=reader.stdout,
                check=True,
            )
        if reader.returncode != 0:
            raise CompatError(f"dpkg-deb cannot read {package}")


def version_of(binary: Path) -> str:
    """What the binary says of itself, for instance `10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)`."""
    return run(binary, "--version").splitlines()[0].removeprefix("QEMU emulator version ")


def provide(version: str, folder: Path, say: Callable[[str], None]) -> Path:
    """Return an executable that starts this version's QEMU; get it first if it is not there."""
    target = folder / version
    binary = target / BINARY
    if not binary.exists():
        suite = SUITES[version]
        say(f"QEMU {version}: getting {PACKAGES[0]} and its libraries from Debian {suite}")
        building = folder / f"{version}.new"
        shutil.rmtree(building, ignore_errors=True)
        unpack(download((building / "apt").absolute(), suite), building / "root")
        shutil.rmtree(building / "apt")
        (building / BINARY).write_text(WRAPPER)
        (building / BINARY).chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    found = version_of(binary)
    if not found.startswith(f"{version}."):
        raise CompatError(f"{target} holds QEMU {found}, not {version}: the suite has moved on")
    return binary
