# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare doctor --qemu`: judgements on made-up QEMUs, and on the stock one, whole and crippled."""

import asyncio
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.compat.debian import SUITES
from tests.lib.documents import parsed
from tests.lib.vm import plugin_path

from memshare.clients import emulator as emulator_client
from memshare.probes import Verdict, emulator, examine
from memshare.probes.emulator import Emulator, Machine

QEMU_12 = "QEMU emulator version 12.3.4 (made up)"
STOCK = "qemu-system-x86_64"


def verdicts(seen: Emulator) -> dict[str, Verdict]:
    """Each probe's verdict."""
    return {name: finding.verdict for name, finding in examine(seen, emulator.PROBES)}


def what(seen: Emulator, probe: str) -> str:
    """What a probe says."""
    return dict(examine(seen, emulator.PROBES))[probe].what


async def doctor(*arguments: str | Path) -> tuple[int | None, dict[str, dict[str, str]], str]:
    """Run the real command; return its exit code, the findings by probe, and stderr."""
    environment = {key: value for key, value in os.environ.items() if key != "MEMSHARE_QEMU"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from memshare.cli import main; main()", "doctor", "-o", "json"),
        *(str(argument) for argument in arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, err = await process.communicate()
    findings = parsed("doctor", out)["findings"] if out else []
    return process.returncode, {each["probe"]: each for each in findings}, err.decode()


def script(path: Path, body: str) -> Path:
    """Write a program that is no QEMU, whatever it says."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_qemu(path: Path, message: str) -> Path:
    """Write a program that says it is a QEMU, and ends with a message when it is to run."""
    return script(
        path,
        f'[ "$1" != --version ] || {{ echo "{QEMU_12}"; exit 0; }}\necho "{message}" >&2; exit 1',
    )


def without_symbol(copy: Path, symbol: str) -> Path:
    """Write a copy of the stock QEMU that exports one symbol by another name."""
    stock = shutil.which(STOCK)
    assert stock is not None
    binary = Path(stock).read_bytes()
    name = b"\0" + symbol.encode() + b"\0"
    assert binary.count(name) == 1
    copy.write_bytes(binary.replace(name, name[:-2] + b"_\0"))
    copy.chmod(0o755)
    return copy


# The stock QEMU, whole and without one symbol.


async def test_the_stock_qemu_has_nothing_in_the_way() -> None:
    code, findings, err = await doctor("--qemu", STOCK, "--plugin", plugin_path())
    assert (code, err) == (0, "")
    assert {each["verdict"] for each in findings.values()} == {"PASS"}
    assert findings["loads"]["what"] == "memshare 0.1.0 answers"
    assert list(findings) == [probe.__name__.replace("_", "-") for probe in emulator.PROBES]


async def test_a_missing_symbol_is_named_and_the_guest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # QEMU looks for its modules, TCG among them, relative to itself.
    multiarch = sysconfig.get_config_var("MULTIARCH")
    monkeypatch.setenv("QEMU_MODULE_DIR", f"/usr/lib/{multiarch}/qemu")
    crippled = without_symbol(tmp_path / "qemu", "ram_block_discard_require")
    code, findings, err = await doctor("--qemu", crippled, "--plugin", plugin_path())
    assert code == 5
    assert err.startswith(f"error: {crippled} cannot run memshare\n")
    assert findings["symbols"]["verdict"] == "FAIL"
    assert findings["symbols"]["what"] == (
        "this qemu lacks 1 of the symbols that memshare calls: ram_block_discard_require"
    )
    assert findings["plugin-api"]["verdict"] == "PASS"
    assert "loads" not in findings
    # Its monitor answered: QEMU itself had nothing against going on.
    assert findings["machines"]["verdict"] == "PASS"


# What is no QEMU, or none that takes the plugin.


@pytest.mark.parametrize("program", ["/bin/true", "/bin/false"])
async def test_another_program_is_no_qemu(program: str) -> None:
    code, findings, _ = await doctor("--qemu", program, "--plugin", plugin_path())
    assert code == 5
    assert [each["verdict"] for each in findings.values()] == ["PASS", "FAIL"]
    assert findings["version"]["what"].startswith("not a QEMU that runs machines")


async def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a program")
    (tmp_path / "foreign").write_text("no program either")
    (tmp_path / "foreign").chmod(0o755)
    for name, problem in (
        ("data", "not executable"),
        ("nothing", "no such program"),
        ("foreign", "exec format error"),
    ):
        code, findings, _ = await doctor("--qemu", tmp_path / name)
        assert code == 5
        assert list(findings) == ["executable"]
        assert findings["executable"]["what"].endswith(problem)


async def test_a_missing_plugin_is_told(tmp_path: Path) -> None:
    code, findings, _ = await doctor("--qemu", STOCK, "--plugin", tmp_path / "nothing.so")
    assert code == 5
    assert findings["loads"]["verdict"] == "FAIL"
    assert "nothing.so" in findings["loads"]["what"]


@pytest.mark.parametrize(
    ("message", "probe", "words"),
    [
        (
            "qemu: Could not load plugin a.so: plugin requires API version 7, but this QEMU "
            "supports only a minimum version of 8",
            "plugin-api",
            "memshare names plugin API 7, this QEMU takes a minimum version of 8",
        ),
        ("qemu: -plugin: invalid option", "plugins", "built without plugins"),
        ("qemu: plugin interface not enabled in this build", "plugins", "built without plugins"),
        ("qemu: all is lost", "loads", "the plugin did not load: qemu: all is lost"),
    ],
)
async def test_a_fake_qemu_says_why_not(
    tmp_path: Path, message: str, probe: str, words: str
) -> None:
    fake = fake_qemu(tmp_path / "fake-qemu", message)
    code, findings, _ = await doctor("--qemu", fake, "--plugin", plugin_path())
    assert code == 5
    failed = {name: each["what"] for name, each in findings.items() if each["verdict"] == "FAIL"}
    assert failed == {probe: words}
    assert findings["version"]["verdict"] == "WARN"


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator_client, "ANSWER_SECONDS", 0.2)
    fake = script(tmp_path / "fake-qemu", "exec sleep 1000")
    seen = emulator_client.look(str(fake), plugin_path())
    assert what(seen, "version") == "not a QEMU that runs machines; it says nothing of itself"


# Judgements alone.


def test_an_untried_version_is_a_warning_and_a_tried_one_is_not() -> None:
    def judged(version: str) -> Verdict:
        seen = Emulator(path="q", introduction=f"QEMU emulator version {version} (x)")
        return verdicts(seen)["version"]

    assert judged("7.2.22") is judged("10.0.8") is judged("11.1.3") is Verdict.PASS
    assert judged("7.20.1") is judged("8.2.0") is judged("11.2.0") is Verdict.WARN


def test_what_is_called_tested_is_what_compat_runs() -> None:
    assert tuple(SUITES) == emulator.TESTED


def test_machines_without_a_backend_are_worth_a_warning() -> None:
    backed, bare = Machine(name="pc"), Machine(name="bare", has_backend=False)

    def judged(*machines: Machine) -> Verdict:
        return verdicts(Emulator(path="q", machines=machines))["machines"]

    assert judged(backed, bare) is Verdict.PASS
    assert judged(bare) is Verdict.WARN
    assert judged(backed, Machine(name="x", is_default=True, has_backend=False)) is Verdict.WARN


def test_a_qemu_without_kvm_emulates() -> None:
    assert verdicts(Emulator(path="q", plugin_version="1"))["accelerator"] is Verdict.WARN
