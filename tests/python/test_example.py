# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed library, as a stranger's program finds it: pkg-config, headers, shared object."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.lib.broker import Broker, build_directory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install what users of the library need below a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "mesonbuild.mesonmain", "install", "-C", build_directory(), "--quiet",
         "--no-rebuild", "--destdir", folder, "--tags", "runtime,devel"],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def example(installed: Path) -> tuple[Path, dict[str, str]]:
    """The compiled example, and the environment in which it finds the library."""
    (description,) = installed.rglob("memshare.pc")
    environment = {
        **os.environ,
        "PKG_CONFIG_PATH": str(description.parent),
        "PKG_CONFIG_SYSROOT_DIR": str(installed),
        "LD_LIBRARY_PATH": str(description.parents[1]),
    }
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "memshare"],
        check=True, capture_output=True, text=True, env=environment,
    ).stdout.split()  # fmt: skip
    program = installed / "share"
    subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", ROOT / "examples" / "share.c",
         *flags, "-o", program],
        check=True,
    )  # fmt: skip
    return program, environment


def test_two_processes_share(example: tuple[Path, dict[str, str]], broker: Broker) -> None:
    program, environment = example
    done = subprocess.run(
        [program, broker.socket_path()],
        check=False, capture_output=True, text=True, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "child: shared, contents right",
        "parent: shared, contents right",
    ]


def test_library_shows_its_public_functions_only(installed: Path) -> None:
    (library,) = (path for path in installed.rglob("libmemshare.so") if path.exists())
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    shown = {line.split()[-1] for line in listing.splitlines()}
    headers = "".join(
        path.read_text() for path in (ROOT / "qemu-plugin/include/memshare").glob("*.h")
    )
    assert "msh_engine_new" in shown
    assert [name for name in shown if f"{name}(" not in headers] == []
