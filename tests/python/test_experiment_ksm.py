# SPDX-License-Identifier: GPL-2.0-or-later
"""KSM as an engine of an experiment, on knobs in a folder: nothing else steers it, and what it lacks is said."""

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.lib.holder import Holder
from tests.lib.vm import until

from memshare.clients import ksm, ksm_marks
from memshare.errors import HostError
from memshare.experiment import engines
from memshare.experiment import ksm as engine_ksm
from memshare.experiment.ksm import KNOBS, Ksm, Ksmtuned
from memshare.experiment.plan import EngineKind

KNOBS_BEFORE = {
    "advisor_mode": "none",
    "pages_to_scan": "77",
    "run": "0",
    "sleep_millisecs": "33",
    "use_zero_pages": "1",
}
COUNTERS = "pages_shared pages_sharing pages_unshared pages_volatile full_scans ksm_zero_pages"


@pytest.fixture
def knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the kernel's, on a host where nobody has marked memory or steers it."""
    folder = tmp_path / "ksm"
    folder.mkdir()
    for name, value in KNOBS_BEFORE.items():
        (folder / name).write_text(value)
    for name in COUNTERS.split():
        (folder / name).write_text("0")
        (folder / name).chmod(0o444)
    monkeypatch.setattr(ksm, "KSM", folder)
    monkeypatch.setattr(ksm, "processes_marked", list)
    monkeypatch.setattr(ksm, "ksmd_pid", os.getpid)
    monkeypatch.setattr(ksm_marks, "processes", frozenset)
    return folder


def engine(kind: EngineKind, folder: Path) -> Ksm:
    lab = cast(Any, SimpleNamespace(folder=folder, build=folder))
    return Ksmtuned(lab, kind) if kind is EngineKind.KSMTUNED else Ksm(lab, kind)


@contextmanager
def tuner(folder: Path) -> Iterator[int]:
    """A script that is taken for ksmtuned; gives its id."""
    script = folder / "ksmtuned"
    script.write_text("#!/bin/sh\necho ready; read word\n")
    command = ["/bin/sh", str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


async def test_no_other_tuner_is_measured(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tuner(tmp_path) as pid:
        monkeypatch.setattr(ksm_marks, "processes", lambda: frozenset({pid}))
        with pytest.raises(HostError, match=f"ksmtuned, process {pid}, steers KSM") as caught:
            await engine(EngineKind.KSM_FULL, tmp_path).__aenter__()
        assert caught.value.hint == "systemctl stop ksmtuned"
    assert ksm.read_knobs() == KNOBS_BEFORE  # and what has ended steers nothing
    async with engine(EngineKind.KSM_FULL, tmp_path):
        assert ksm.read_knobs()["pages_to_scan"] == "100000"
    assert ksm.read_knobs() == KNOBS_BEFORE


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (EngineKind.KSM_DEFAULT, "run", "0"),
        (EngineKind.KSM_DEFAULT, "pages_to_scan", "1250"),
        (EngineKind.KSM_ADVISOR, "sleep_millisecs", "10"),
    ],
)
async def test_who_sets_a_knob_meanwhile_is_noticed(
    knobs: Path, tmp_path: Path, kind: EngineKind, name: str, value: str
) -> None:
    async with engine(kind, tmp_path) as one:
        async with one.held():
            pass
        await one.start()
        async with one.held():
            assert ksm.read_knobs()["run"] == ksm.RUN_STOP
        assert ksm.read_knobs()["run"] == ksm.RUN_MERGE
        (knobs / name).write_text(value)
        with pytest.raises(HostError, match=f"KSM's {name} was [0-9]+ and is {value}: "):
            async with one.held():
                pytest.fail("measured something else")
    assert ksm.read_knobs() == KNOBS_BEFORE


ODD = {
    "advisor_max_cpu": "50",
    "advisor_max_pages_to_scan": "20000",
    "advisor_min_pages_to_scan": "400",
    "advisor_target_scan_time": "100",
    "max_page_sharing": "128",
    "sleep_millisecs": "10",
    "stable_node_chains_prune_millisecs": "1000",
}


async def test_this_kernel_is_as_it_comes_whatever_was_set_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def merged() -> int:
        return ksm.read_counters().pages_sharing

    with ksm.preserved(), Holder(64, mmap.MADV_MERGEABLE) as holder:
        monkeypatch.setattr(ksm, "locked", nullcontext)
        monkeypatch.setattr(ksm, "processes_marked", list)
        monkeypatch.setattr(ksm_marks, "processes", frozenset)
        (ksm.KSM / "run").write_text(ksm.RUN_UNMERGE)
        odd = {name: value for name, value in ODD.items() if name in ksm.read_knobs()}
        ksm.write_knobs(odd | {"pages_to_scan": "10000"})
        holder.hold([["byte", 0, 7]] * 64)
        ksm.write_knobs({"run": ksm.RUN_MERGE})
        await until(merged, lambda pages: pages > 0)
        with pytest.raises(OSError, match="busy"):
            (ksm.KSM / "max_page_sharing").write_text("64")
        before = ksm.read_knobs()
        async with engine(EngineKind.KSM_DEFAULT, tmp_path):
            now = ksm.read_knobs()
        assert now == {name: KNOBS[EngineKind.KSM_DEFAULT].get(name, "0") for name in before}
        assert ksm.read_knobs() == before


async def test_a_knob_that_cannot_be_set_is_told(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if (path, text) == (knobs / "sleep_millisecs", "20"):
            raise OSError(16, "Device or resource busy")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(HostError, match="KSM cannot be set: device or resource busy"):
        await engine(EngineKind.KSM_DEFAULT, tmp_path).__aenter__()
    assert ksm.read_knobs() == KNOBS_BEFORE


async def test_what_steers_may_set_knobs(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine(EngineKind.KSM_ADVISOR, tmp_path) as one:
        assert ksm.read_knobs()["advisor_mode"] == "scan-time"
        (knobs / "pages_to_scan").write_text("3000")
        async with one.held():
            pass
    monkeypatch.setattr(engine_ksm, "KSMTUNED", Path("/bin/true"))
    async with engine(EngineKind.KSMTUNED, tmp_path) as one:
        (knobs / "run").write_text(ksm.RUN_MERGE)
        (knobs / "pages_to_scan").write_text("1250")
        async with one.held():
            assert ksm.read_knobs()["run"] == ksm.RUN_STOP
        assert ksm.read_knobs()["run"] == ksm.RUN_MERGE


async def test_the_hint_about_ksmtuned_starts_no_service(
    knobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ksm, "KSMTUNED", tmp_path / "none")
    with pytest.raises(HostError, match="none: not there") as caught:
        await engine(EngineKind.KSMTUNED, tmp_path).__aenter__()
    hint = caught.value.hint or ""
    assert hint.startswith("apt-get download ksmtuned") and "disable --now ksm ksmtuned" in hint


def test_what_this_kernel_lacks_is_said_before_the_first_run(knobs: Path, tmp_path: Path) -> None:
    for kind in (EngineKind.KSM_DEFAULT, EngineKind.KSM_FULL, EngineKind.KSM_ADVISOR):
        engines.check(kind, tmp_path)
    (knobs / "advisor_mode").unlink()
    engines.check(EngineKind.KSM_FULL, tmp_path)
    with pytest.raises(HostError, match="KSM has no advisor_mode"):
        engines.check(EngineKind.KSM_ADVISOR, tmp_path)
    knobs.rename(tmp_path / "away")
    with pytest.raises(HostError, match="this kernel has no KSM"):
        engines.check(EngineKind.KSM_FULL, tmp_path)
    engines.check(EngineKind.OFF, tmp_path)


@pytest.mark.parametrize(
    ("kind", "zero_bytes"),
    [(EngineKind.KSM_DEFAULT, None), (EngineKind.KSM_FULL, 3 * 4096)],
)
async def test_zeros_are_told_only_where_ksm_tells_them_apart(
    knobs: Path, tmp_path: Path, kind: EngineKind, zero_bytes: int | None
) -> None:
    async with engine(kind, tmp_path) as one:
        for name, pages in (("ksm_zero_pages", 3), ("pages_sharing", 5)):
            (knobs / name).write_text(str(pages))
        figures = await one.figures()
    assert figures.saved_zero_bytes == zero_bytes
    assert figures.saved_content_bytes == 5 * 4096
