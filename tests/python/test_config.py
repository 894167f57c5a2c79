# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's configuration: files and drop-ins, and what is wrong in them."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from memshare import config
from memshare.cli.config import command
from memshare.errors import UsageError


def write(directory: Path, **files: str) -> Path:
    """Write memshare.toml and drop-ins; return the first one's path."""
    path = directory / "memshare.toml"
    (directory / "conf.d").mkdir(exist_ok=True)
    for name, text in files.items():
        target = path if name == "main" else directory / "conf.d" / f"{name}.toml"
        target.write_text(text)
    return path


def test_without_a_file_everything_is_as_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PATH", tmp_path / "memshare.toml")
    assert config.load(config.PATH) == config.Config()


def test_a_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml: no such file"):
        config.load(tmp_path / "absent.toml")


def test_a_later_file_changes_single_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        main='group = "a"\n[policy]\nbudget-cpu-ratio = 0.3\npass-seconds = 7\n',
        **{
            "20-two": "[policy]\nbudget-cpu-ratio = 0.5\n",
            "10-one": 'group = "b"\n[policy]\nbudget-cpu-ratio = 0.4\n',
        },
    )
    loaded = config.load(path)
    assert loaded.group == "b"
    assert (loaded.policy.budget_cpu_ratio, loaded.policy.pass_seconds) == (0.5, 7)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("grupo = 1", "grupo"),
        ("[policy]\nbudget-cpu-ratio = 2", r"budget-cpu-ratio"),
        ("[policy]\nbudget_cpu_ratio = 0.5", "budget_cpu_ratio"),
        ("[metrics]\nport = 70000", r"metrics\.port"),
        ('connect = "qemu:///system"', "connect"),
        ("group = 1 2", "line 1"),
        ("[policy]\npass-seconds = 9\nprobe-seconds = 3", "pass-seconds 9"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, wrong: str) -> None:
    path = write(tmp_path, **{"main": 'group = "a"\n', "50-site": text})
    with pytest.raises(UsageError, match=rf"50-site\.toml: .*{wrong}"):
        config.load(path)


def test_what_only_two_files_together_get_wrong_is_found(tmp_path: Path) -> None:
    path = write(
        tmp_path, main="[policy]\npass-seconds = 15\n", site="[policy]\nprobe-seconds = 10\n"
    )
    with pytest.raises(UsageError, match="pass-seconds 15"):
        config.load(path)


def test_a_drop_in_is_judged_with_the_files_before_it(tmp_path: Path) -> None:
    path = write(
        tmp_path, main="[policy]\nprobe-seconds = 90\n", site="[policy]\npass-seconds = 60\n"
    )
    assert config.load(path).policy.pass_seconds == 60


def test_check_and_show(tmp_path: Path) -> None:
    path = write(tmp_path, main='group = "a"\n')
    done = CliRunner().invoke(command, ["check", "--config", str(path)])
    assert done.exit_code == 0
    assert f"{path}: fine" in done.stderr
    shown = CliRunner().invoke(command, ["show", "--config", str(path)])
    assert '"group": "a"' in shown.stdout
    assert '"budget-cpu-ratio"' in shown.stdout
