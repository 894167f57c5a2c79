# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host installs beside the programs, by the judgement of the programs that read it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from tests.lib.broker import build_directory

from memshare import config
from memshare.probes.hypervisor import ABSTRACTION
from memshare.probes.kernel import MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = ("memshared.socket", "memshared.service", "memshare.service")


def run(*arguments: str | Path) -> str:
    """Run a program that must succeed; return all that it says."""
    done = subprocess.run(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that `meson install` makes of the system's parts."""
    tree = tmp_path_factory.mktemp("installed")
    meson = Path(sys.executable).parents[1] / "bin/meson"
    if not meson.exists():  # the environment of the second build has none of its own
        meson = ROOT / ".venv/bin/meson"
    run(
        *(meson, "install", "-C", build_directory(), "--no-rebuild", "--quiet"),
        *("--tags", "system", "--destdir", tree),
    )
    return tree


@pytest.fixture
def units(installed: Path, tmp_path: Path) -> list[Path]:
    """The installed units, whose programs are stubs that exist."""
    made = []
    for name in UNITS:
        (found,) = installed.rglob(name)
        text = re.sub(r"^ExecStart=\S+/", f"ExecStart={tmp_path}/", found.read_text(), flags=re.M)
        assert "@" not in re.sub(r"(?m)^(#|SystemCallFilter).*", "", text)
        (tmp_path / name).write_text(text)
        made.append(tmp_path / name)
    for program in ("memshared", "memshare"):
        shutil.copy("/bin/true", tmp_path / program)
    return made


def test_all_of_it_is_installed(installed: Path) -> None:
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*.*")}
    for name in (
        *(f"lib/systemd/system/{unit}" for unit in UNITS),
        *("lib/sysusers.d/memshare.conf", "lib/tmpfiles.d/memshare.conf"),
        *("lib/sysctl.d/20-memshare.conf", "memshare/memshare.toml"),
    ):
        assert any(file.endswith(name) for file in files), name
    assert list(installed.rglob(f"apparmor.d/{ABSTRACTION}"))


# systemd


def test_units_are_understood_without_a_word(units: list[Path]) -> None:
    assert run("systemd-analyze", "verify", "--man=no", *units) == ""


@pytest.mark.parametrize(
    ("unit", "exposure"), [("memshared.service", 15), ("memshare.service", 30)]
)
def test_units_are_as_little_exposed_as_they_can_be(
    units: list[Path], unit: str, exposure: int
) -> None:
    (path,) = (each for each in units if each.name == unit)
    run(
        *("systemd-analyze", "security", "--offline=true", "--no-pager"),
        *(f"--threshold={exposure}", path),
    )


def test_units_make_what_the_configuration_names(units: list[Path]) -> None:
    default, text = config.Config(), "".join(unit.read_text() for unit in units)
    assert f"\nListenStream={default.broker}\n" in text
    assert f"\nStateDirectory={default.state_dir.removeprefix('/var/lib/')}\n" in text
    assert f"\nRuntimeDirectory={Path(default.socket).parent.name}\n" in text


@pytest.mark.parametrize("unit", ["memshared.service", "memshare.service"])
def test_services_are_not_bound_to_the_usual_1024_descriptors(unit: str) -> None:
    (limit,) = re.findall(r"(?m)^LimitNOFILE=(\d+)$", (PACKAGING / "systemd" / unit).read_text())
    assert int(limit) >= 1 << 16


def calls_of(words: set[str], sets: dict[str, set[str]]) -> set[str]:
    """Return the system calls that a filter names, itself or by a set."""
    calls = {word for word in words if not word.startswith("@")}
    return calls.union(*(calls_of(sets[word], sets) for word in words - calls))


def test_the_brokers_own_sandbox_fits_into_the_units(units: list[Path]) -> None:
    told = run("systemd-analyze", "syscall-filter", "--no-pager")
    blocks = [block.split() for block in re.sub(r"#.*", "", told).split("\n\n")]
    sets = {block[0]: set(block[1:]) for block in blocks if block and block[0].startswith("@")}
    (allowed,) = re.findall(r"^SystemCallFilter=(.*)", units[1].read_text(), re.MULTILINE)
    sandbox = (ROOT / "qemu-plugin/broker/sandbox.c").read_text()
    wanted = set(re.findall(r"SCMP_SYS\((\w+)\)", sandbox))
    assert "memfd_create" in wanted
    # To get there.
    wanted |= {"capget", "capset", "epoll_create1", "mkdir", "prctl", "prlimit64", "seccomp"}
    wanted |= {"setgroups", "signalfd4", "umask"}
    assert wanted <= calls_of(set(allowed.split()), sets)


def test_groups_and_directories(installed: Path, tmp_path: Path) -> None:
    for folder in ("sysusers.d", "tmpfiles.d"):
        (found,) = installed.rglob(folder)
        shutil.copytree(found, tmp_path / "usr/lib" / folder)
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}")
    group = re.search(r"^kvm:x:(\d+):$", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    assert group
    run("systemd-tmpfiles", f"--root={tmp_path}", "--create")
    made = {
        path.name: (path.stat().st_mode & 0o7777, path.stat().st_gid)
        for path in (tmp_path / "run/memshare", tmp_path / "run/memshare/qmp")
    }
    assert made == {"memshare": (0o755, 0), "qmp": (0o1770, int(group[1]))}


# The kernel, AppArmor


def test_doctor_asks_for_the_mappings_that_are_set() -> None:
    text = (PACKAGING / "sysctl.d/memshare.conf").read_text()
    assert re.findall(r"^[^#\n].*", text, re.MULTILINE) == [f"vm.max_map_count = {MAPPINGS}"]


def test_apparmor_understands_the_rules(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text(
        "abi <abi/3.0>,\ninclude <tunables/global>\nprofile memshare-test {\n"
        "  include <abstractions/libvirt-qemu>\n"
        f'  include "{PACKAGING}/apparmor/memshare-qemu"\n}}\n'
    )
    run(
        *("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--skip-read-cache"),
        tmp_path / "profile",
    )


def test_what_the_plugin_reads_in_proc_is_allowed() -> None:
    rules = re.sub(r"#.*", "", (PACKAGING / "apparmor/memshare-qemu").read_text())
    named = set(re.findall(r"@\{PROC\}/(?:@\{pid\}|sys/vm)/(\S+) ", rules))
    allowed = {name for each in named for name in each.strip("{}").removesuffix("/*").split(",")}
    read: set[str] = set()
    for folder in ("client", "plugin"):
        for source in (ROOT / "qemu-plugin" / folder).glob("*.c"):
            read |= set(re.findall(r'"/proc/(?:self|sys/vm)/(\w+)', source.read_text()))
    assert {"pagemap", "max_map_count", "fd"} <= read
    # Links below fd/ are read without asking AppArmor; `status` is in libvirt's own rules.
    assert read - {"status"} <= {name.rstrip("/") for name in allowed}


# The configuration


def example() -> str:
    """The example, as it is installed."""
    return (PACKAGING / "config/memshare.toml").read_text()


def every_key(kind: type[msgspec.Struct]) -> dict[str, object]:
    """The keys of a table, as they are written; tables in turn."""
    keys: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        is_table = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        keys[field.encode_name] = every_key(field.type) if is_table else None
    return keys


def test_the_example_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memshare.toml"
    path.write_text(example())
    assert config.load(path) == config.Config()


def test_the_example_has_every_key_with_its_default(tmp_path: Path) -> None:
    """`#key = value` is a key that is not set; what begins with `# ` is prose."""
    text = re.sub(r"(?m)^#(?=\S)", "", example())
    path = tmp_path / "memshare.toml"
    path.write_text(text)
    loaded = config.load(path)
    # There is no value that says "if it listens".
    assert loaded.connect == ("qemu:///system",)
    assert msgspec.structs.replace(loaded, connect=None) == config.Config()
    table = tomllib.loads(text)
    shown = {
        key: dict.fromkeys(value) if isinstance(value, dict) else None
        for key, value in table.items()
    }
    assert shown == every_key(config.Config)
