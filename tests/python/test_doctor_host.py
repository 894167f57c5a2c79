# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare doctor` for the host: judgements on made-up hosts, what is read of a tree, and this host."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.lib.broker import Broker
from tests.lib.documents import parsed
from tests.lib.vm import plugin_path

from memshare.cli.doctor import print_lines
from memshare.clients import facts
from memshare.probes import Finding, Verdict, broker, emulator, examine, hypervisor, kernel, memory
from memshare.probes.broker import Reached
from memshare.probes.hypervisor import Hypervisor
from memshare.probes.kernel import Kernel
from memshare.probes.memory import Memory

PASS, WARN, FAIL = Verdict.PASS, Verdict.WARN, Verdict.FAIL
ALL_FEATURES = (1 << 17) - 1
WITHOUT_MOVE = ALL_FEATURES & ~(1 << 16)
INCLUDE = "include <abstractions/memshare-qemu>"
CONFINED = {"has_apparmor": True, "has_libvirt_profiles": True, "has_abstraction": True}
NO_CGROUP = "cgroup_controllers = [ ]\n"
DEFAULT_CGROUPS = '#cgroup_controllers = []\ncgroup_controllers = [ "cpu",\n "memory" ]\n'


def judged(seen: Any, probes: Sequence[Any]) -> dict[str, Finding]:
    """Each probe's finding."""
    return dict(examine(seen, probes))


def check(finding: Finding, verdict: Verdict, words: str) -> None:
    """The verdict is that one, for that reason, and whatever is not well has a fix."""
    assert (finding.verdict, words in finding.what) == (verdict, True), finding
    assert "\n" not in finding.what + finding.fix
    assert bool(finding.fix) == (verdict is not PASS)


# Judgements alone. A host where all is well, and each thing that may not be.


@pytest.mark.parametrize(
    ("probe", "facts_", "verdict", "words"),
    [
        ("kernel", {"release": "6.12.37"}, PASS, "Linux 6.12.37"),
        ("kernel", {"release": "6.12.43+deb13-amd64"}, PASS, "6.12.43"),
        ("kernel", {"release": "6.18"}, PASS, "6.18"),
        ("kernel", {"release": "7.0.1-rc1"}, PASS, "7.0.1"),
        ("kernel", {"release": "6.12.36"}, FAIL, "Linux 6.12.36 moves memory unsafely"),
        ("kernel", {"release": "6.17.9"}, FAIL, "6.17.9"),
        ("kernel", {"release": "6.1.0-44-amd64"}, FAIL, "6.1.0"),
        ("kernel", {"release": "mine"}, FAIL, "mine"),
        ("userfaultfd", {}, PASS, "/dev/userfaultfd"),
        ("userfaultfd", {"uffd_features": WITHOUT_MOVE}, FAIL, "lacks UFFDIO_MOVE (6.8)"),
        ("userfaultfd", {"uffd_features": 0}, FAIL, "asynchronous write protection (6.7), UFF"),
        (
            "userfaultfd",
            {"uffd_features": None, "uffd_problem": "no such file"},
            FAIL,
            "no such file",
        ),
        (
            "userfaultfd",
            {"uffd_features": None, "uffd_problem": "may not", "uffd_forbidden": True},
            WARN,
            "not examined: may not",
        ),
        ("pagemap-scan", {}, PASS, ""),
        ("pagemap-scan", {"has_pagemap_scan": None}, WARN, "not examined"),
        ("pagemap-scan", {"has_pagemap_scan": False}, FAIL, "6.7"),
        ("overcommit", {"overcommit_memory": 0}, PASS, "is 0"),
        ("overcommit", {"overcommit_memory": 1}, PASS, "is 1"),
        ("overcommit", {"overcommit_memory": 2}, FAIL, "is 2"),
        ("mappings", {"max_map_count": 1048576}, PASS, "1048576"),
        ("mappings", {"max_map_count": 65530}, WARN, "a guest of about 1024 MiB"),
        ("pressure", {}, PASS, ""),
        ("pressure", {"has_psi": False}, WARN, "/proc/pressure"),
    ],
)
def test_kernel(probe: str, facts_: dict[str, Any], verdict: Verdict, words: str) -> None:
    seen = Kernel(**({"release": "6.18", "uffd_features": ALL_FEATURES} | facts_))
    check(judged(seen, kernel.PROBES)[probe], verdict, words)


@pytest.mark.parametrize(
    ("probe", "facts_", "verdict", "words"),
    [
        ("huge-page-stalls", {}, PASS, "no transparent huge pages"),
        ("huge-page-stalls", {"huge_pages": "never", "huge_pages_defrag": "always"}, PASS, "no "),
        (
            "huge-page-stalls",
            {"huge_pages": "always", "huge_pages_defrag": "madvise"},
            PASS,
            "huge pages always, defrag madvise",
        ),
        (
            "huge-page-stalls",
            {"huge_pages": "madvise", "huge_pages_defrag": "always"},
            WARN,
            "compaction",
        ),
        ("khugepaged", {}, PASS, ""),
        ("khugepaged", {"huge_pages": "never", "khugepaged_max_ptes_none": 511}, PASS, ""),
        ("khugepaged", {"huge_pages": "madvise", "khugepaged_max_ptes_none": 0}, PASS, ""),
        ("khugepaged", {"huge_pages": "madvise", "khugepaged_max_ptes_none": 511}, WARN, "511 of"),
        ("ksm", {}, PASS, "not built in"),
        ("ksm", {"ksm_run": "0"}, PASS, "not running"),
        ("ksm", {"ksm_run": "2"}, PASS, "not running"),
        ("ksm", {"ksm_run": "1", "ksm_pages_sharing": 512}, WARN, "2.0 MiB now"),
        ("ksm-tuner", {}, PASS, ""),
        ("ksm-tuner", {"ksmtuned": (12, 13)}, WARN, "process 12"),
        ("reserved-huge-pages", {"reserved_bytes": {"hugepages-2048kB": 0}}, PASS, "none"),
        (
            "reserved-huge-pages",
            {"reserved_bytes": {"hugepages-1048576kB": 2 << 30, "hugepages-2048kB": 1 << 30}},
            WARN,
            "3.0 GiB",
        ),
        ("swap", {"swap_bytes": 1 << 30}, PASS, "1.0 GiB"),
        ("swap", {}, WARN, "no swap"),
    ],
)
def test_memory(probe: str, facts_: dict[str, Any], verdict: Verdict, words: str) -> None:
    check(judged(Memory(**facts_), memory.PROBES)[probe], verdict, words)


@pytest.mark.parametrize(
    ("probe", "facts_", "verdict", "words"),
    [
        ("kvm", {}, PASS, "/dev/kvm"),
        ("kvm", {"has_kvm": False}, WARN, "emulated"),
        ("nested", {}, PASS, "no guests"),
        ("nested", {"nesting": ("kvm_intel",), "release": "6.13.0"}, PASS, "and share"),
        ("nested", {"nesting": ("kvm_amd",), "release": "6.12.40"}, WARN, "kvm_amd has nested=1"),
        ("vfio", {}, PASS, "no device"),
        ("vfio", {"vfio_groups": ("7", "12")}, WARN, "2 IOMMU groups are given to VFIO (7, 12)"),
        ("cgroups", {}, PASS, "v2"),
        ("cgroups", {"libvirt_config": DEFAULT_CGROUPS}, PASS, "v2"),
        ("cgroups", {"cgroup_controllers": None}, WARN, "v1"),
        ("cgroups", {"cgroup_controllers": ("cpu",)}, WARN, "without memory"),
        ("cgroups", {"libvirt_config": NO_CGROUP}, FAIL, "gives guests no cgroup"),
        ("apparmor", {}, PASS, "not enabled"),
        ("apparmor", {"has_apparmor": True}, PASS, "does not confine"),
        (
            "apparmor",
            CONFINED | {"libvirt_config": 'security_driver = "none"\n'},
            PASS,
            "does not confine",
        ),
        ("apparmor", CONFINED | {"local_abstraction": f"# ours\n{INCLUDE}"}, PASS, "may load"),
        ("apparmor", CONFINED | {"local_abstraction": f"  #{INCLUDE}"}, PASS, "may load"),
        ("apparmor", CONFINED, FAIL, "does not start"),
        ("apparmor", CONFINED | {"local_abstraction": f"# {INCLUDE}"}, FAIL, "does not start"),
        ("apparmor", CONFINED | {"has_abstraction": False}, FAIL, "is missing"),
    ],
)
def test_hypervisor(probe: str, facts_: dict[str, Any], verdict: Verdict, words: str) -> None:
    check(judged(Hypervisor(**facts_), hypervisor.PROBES)[probe], verdict, words)


@pytest.mark.parametrize(
    ("probe", "facts_", "verdict", "words"),
    [
        ("configuration", {}, PASS, ""),
        ("configuration", {"config_problem": "m.toml: no such key"}, FAIL, "m.toml"),
        ("broker", {"socket": ""}, WARN, "names none"),
        ("broker", {"problem": "/run/c: no such file"}, FAIL, "/run/c"),
        ("broker", {"problem": "/run/c: denied", "forbidden": True}, WARN, "not asked"),
        ("broker", {"broker_version": "0"}, WARN, "memshared 0 runs, and this is memshare 1"),
        ("broker", {"broker_version": "1"}, PASS, "serves no group yet"),
        ("broker", {"broker_version": "1", "groups": ("a", "b")}, PASS, "serves a, b"),
    ],
)
def test_broker(probe: str, facts_: dict[str, Any], verdict: Verdict, words: str) -> None:
    seen = Reached(**({"socket": "/run/c", "version": "1"} | facts_))
    check(judged(seen, broker.PROBES)[probe], verdict, words)


def test_without_a_configuration_no_broker_is_judged() -> None:
    assert "broker" not in judged(Reached(config_problem="wrong"), broker.PROBES)


# What is read. A tree with everything, and one with nothing.


def make_tree(root: Path, files: dict[str, str]) -> None:
    """Write files below a root."""
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_what_is_read_of_a_host(tmp_path: Path) -> None:
    mm = "sys/kernel/mm"
    make_tree(
        tmp_path,
        {
            f"{mm}/transparent_hugepage/enabled": "always [madvise] never\n",
            f"{mm}/transparent_hugepage/defrag": "always defer [defer+madvise] madvise never\n",
            f"{mm}/transparent_hugepage/khugepaged/max_ptes_none": "511\n",
            f"{mm}/ksm/run": "1\n",
            f"{mm}/ksm/pages_sharing": "77\n",
            f"{mm}/hugepages/hugepages-2048kB/nr_hugepages": "3\n",
            f"{mm}/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
            "proc/meminfo": "MemTotal: 10 kB\nSwapTotal: 4 kB\n",
            "proc/41/comm": "bash\n",
            "proc/42/comm": "ksmtuned\n",
            "proc/sys/vm/overcommit_memory": "2\n",
            "proc/sys/vm/max_map_count": "65530\n",
            "proc/pressure/memory": "some ...\n",
            "sys/module/kvm_amd/parameters/nested": "1\n",
            "sys/module/kvm_intel/parameters/nested": "N\n",
            "dev/kvm": "",
            "dev/vfio/vfio": "",
            "dev/vfio/13": "",
            "sys/fs/cgroup/cgroup.controllers": "cpu io memory\n",
            "etc/libvirt/qemu.conf": NO_CGROUP,
            "sys/module/apparmor/parameters/enabled": "Y\n",
            "etc/apparmor.d/abstractions/libvirt-qemu": "",
            "etc/apparmor.d/abstractions/memshare-qemu": "",
            "etc/apparmor.d/local/abstractions/libvirt-qemu": f"{INCLUDE}\n",
        },
    )
    assert facts.look_at_memory(tmp_path) == Memory(
        huge_pages="madvise",
        huge_pages_defrag="defer+madvise",
        khugepaged_max_ptes_none=511,
        ksm_run="1",
        ksm_pages_sharing=77,
        ksmtuned=(42,),
        reserved_bytes={"hugepages-2048kB": 3 * 2 << 20, "hugepages-1048576kB": 0},
        swap_bytes=4096,
    )
    seen = facts.look_at_kernel(tmp_path)
    assert (seen.overcommit_memory, seen.max_map_count, seen.has_psi) == (2, 65530, True)
    assert (seen.uffd_features, seen.uffd_forbidden) == (None, False)
    assert facts.look_at_hypervisor(tmp_path) == Hypervisor(
        release=os.uname().release,
        nesting=("kvm_amd",),
        vfio_groups=("13",),
        cgroup_controllers=("cpu", "io", "memory"),
        libvirt_config=NO_CGROUP.strip(),
        local_abstraction=INCLUDE,
        **CONFINED,
    )


def test_what_is_read_of_a_host_that_has_nothing(tmp_path: Path) -> None:
    assert facts.look_at_memory(tmp_path) == Memory()
    seen = facts.look_at_kernel(tmp_path)
    assert seen.has_pagemap_scan is None
    assert seen.uffd_problem == "/dev/userfaultfd: no such file or directory"
    assert facts.look_at_hypervisor(tmp_path) == Hypervisor(
        release=os.uname().release, has_kvm=False, cgroup_controllers=None
    )


def test_a_device_that_is_no_userfaultfd_is_no_crash(tmp_path: Path) -> None:
    make_tree(tmp_path, {"dev/userfaultfd": "", "proc/self/pagemap": ""})
    seen = facts.look_at_kernel(tmp_path)
    assert seen.uffd_features is None
    assert seen.uffd_problem == "/dev/userfaultfd: inappropriate ioctl for device"
    assert seen.has_pagemap_scan is False


def test_the_kernel_that_tests_run_on_is_fit() -> None:
    seen = facts.look_at_kernel()
    findings = judged(seen, kernel.PROBES)
    # Engines run in these tests, so whatever is in their way is none of this.
    assert {findings[name].verdict for name in ("kernel", "userfaultfd", "pagemap-scan")} == {PASS}


async def test_a_broker_is_asked(tmp_path: Path) -> None:
    config = tmp_path / "memshare.toml"
    with Broker("--group", "red") as running:
        config.write_text(f'broker = "{running.directory}/control.sock"\n')
        found = judged(await facts.look_at_broker(config), broker.PROBES)
        check(found["broker"], PASS, "memshared 0.1.0 answers, serves red")
        running.stop()
    found = judged(await facts.look_at_broker(config), broker.PROBES)
    check(found["broker"], FAIL, "control.sock: no such file or directory: guests share nothing")
    config.write_text("brokr = 1\n")
    found = judged(await facts.look_at_broker(config), broker.PROBES)
    check(found["configuration"], FAIL, f"{config}: Object contains unknown field `brokr`")
    config.write_text('broker = ""\n')
    assert (await facts.look_at_broker(config)).socket == ""


# The command, on this host.


async def doctor(*arguments: str | Path) -> tuple[int | None, str, str]:
    """Run the real command; return its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from memshare.cli import main; main()", "doctor"),
        *(str(argument) for argument in arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_examines_this_host_and_its_default_qemu(tmp_path: Path) -> None:
    # With a configuration that cannot be read, so that something is in the way on every host.
    config = ("--config", tmp_path / "missing.toml")
    code, out, err = await doctor("-o", "json", "--plugin", plugin_path(), *config)
    findings = parsed("doctor", out)["findings"]
    probes = (
        *(*kernel.PROBES, *memory.PROBES, *hypervisor.PROBES),
        *(broker.configuration, *emulator.PROBES),
    )
    assert [each["probe"] for each in findings] == [
        probe.__name__.replace("_", "-") for probe in probes
    ]
    assert {each["verdict"] for each in findings} <= set(Verdict)
    failed = [each["what"] for each in findings if each["verdict"] == FAIL]
    assert f"{tmp_path}/missing.toml: no such file" in failed
    assert code == 5
    assert err.startswith("error: this host cannot run memshare\n")
    assert all(each["fix"] for each in findings if each["verdict"] != PASS)


def test_a_line_has_all_that_is_to_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([("kvm", Finding(PASS, "there")), ("mappings", Finding(WARN, "few", "x " * 200))])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["PASS  kvm       there", "WARN  mappings  few", f"{'':16}fix: {'x ' * 200}"]
