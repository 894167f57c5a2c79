# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's configuration: one TOML file, and drop-ins beside it that change single keys.

`/etc/memshare/memshare.toml`, then `/etc/memshare/conf.d/*.toml` in order of their names; a later file wins key
by key. No file has to exist: every key has a default. An unknown key is an error, never ignored, because a
misspelt limit is a limit that is not there.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from memshare import paths
from memshare.errors import UsageError
from memshare.policy import Config as PolicyConfig
from memshare.policy.ksm import KsmConfig

PATH = paths.CONFIG

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Section(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """A table of the file."""


class GuardConfig(Section, frozen=True, kw_only=True):
    """What the guard may do beyond scanning faster.

    hook is run with MEMSHARE_MISSING_BYTES and MEMSHARE_REASON in its environment, when balloons were not enough
    or there are none; it is killed after hook_timeout_seconds.
    """

    balloon: bool = True
    hook: str = ""
    hook_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class MetricsConfig(Section, frozen=True, kw_only=True):
    """Where Prometheus may ask. Port 0: nowhere."""

    address: str = "127.0.0.1"
    port: Port = 9843


class Config(Section, frozen=True, kw_only=True):
    """Everything the daemon is told.

    connect None: the libvirt of this host, if it listens. cgroup is the folder (below /sys/fs/cgroup) of the cgroup
    whose limit bounds all guests; empty: the host's memory does. broker empty: there is none, and no guest is announced.
    """

    connect: tuple[str, ...] | None = None
    qmp_dirs: tuple[str, ...] = ()
    broker: str = str(paths.CONTROL_SOCKET)
    group: str = "default"
    libvirt_run_dir: str = "/run/libvirt/qemu"
    cgroup: str = ""
    socket: str = str(paths.DAEMON_SOCKET)
    state_dir: str = "/var/lib/memshare"
    log_json: bool = False
    policy: PolicyConfig = msgspec.field(default_factory=PolicyConfig)
    guard: GuardConfig = msgspec.field(default_factory=GuardConfig)
    ksm: KsmConfig = msgspec.field(default_factory=KsmConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)


def files_of(path: Path) -> list[Path]:
    """Return the files that are read, in the order in which they count."""
    drop_ins = sorted((path.parent / "conf.d").glob("*.toml"))
    return [file for file in (path, *drop_ins) if file.exists()]


def load(path: Path = PATH) -> Config:
    """Read the configuration; raises UsageError that names the file and the key.

    A file that was asked for and is not there is an error, the one at the usual place is not.
    """
    if path != PATH and not path.exists():
        raise UsageError(f"{path}: no such file")
    tables = {file: _read(file) for file in files_of(path)}
    merged: dict[str, Any] = {}
    for table in tables.values():
        merged = _merged(merged, table)
    try:
        return _convert(merged, path)
    except UsageError:
        for file, table in tables.items():
            _convert(table, file)  # so that an error names the file that has it
        raise


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error


def _convert(table: Mapping[str, Any], file: Path) -> Config:
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file}: {error}") from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both tables as one; where both have a key the second wins, tables are merged in turn."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        result[key] = value
    return result
