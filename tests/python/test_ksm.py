# SPDX-License-Identifier: GPL-2.0-or-later
"""KSM's knobs are put back, in an order that the kernel accepts; nobody else's memory is scanned."""

import mmap
import os
from pathlib import Path

import pytest

from memshare.clients import ksm
from memshare.errors import HostError

BEFORE = {
    "advisor_mode": "scan-time",
    "max_page_sharing": "256",
    "pages_to_scan": "500",
    "run": "1",
    "use_zero_pages": "0",
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A folder of knobs in place of the kernel's, and what is written to them."""
    log: list[tuple[str, str]] = []
    for name, value in BEFORE.items():
        (tmp_path / name).write_text(f"{value}\n")
    (tmp_path / "advisor_mode").write_text("none [scan-time]\n")
    (tmp_path / "pages_shared").write_text("7\n")
    (tmp_path / "pages_shared").chmod(0o444)
    write = Path.write_text

    def write_logged(path: Path, text: str) -> int:
        log.append((path.name, text))
        if path.name != "advisor_mode" and "[none]" not in (tmp_path / "advisor_mode").read_text():
            assert path.name in ("run", "max_page_sharing", "use_zero_pages"), "the advisor is on"
        return write(path, f"[{text}]" if path.name == "advisor_mode" else text)

    monkeypatch.setattr(ksm, "KSM", tmp_path)
    monkeypatch.setattr(Path, "write_text", write_logged)
    return log


def test_every_knob_is_put_back(written: list[tuple[str, str]]) -> None:
    with pytest.raises(KeyboardInterrupt), ksm.preserved():
        ksm.write_knobs({"advisor_mode": "none", "pages_to_scan": "9", "use_zero_pages": "1"})
        ksm.write_knobs({"run": "0"})
        raise KeyboardInterrupt
    assert ksm.read_knobs() == BEFORE
    names = [name for name, _ in written]
    unmerged = written.index(("run", ksm.RUN_UNMERGE))
    assert written[-1] == ("run", "1")
    assert set(names[unmerged:]) == {"run", "advisor_mode", "pages_to_scan", "use_zero_pages"}


def test_second_measurement_is_refused(written: list[tuple[str, str]]) -> None:
    with ksm.preserved():
        del written[:]
        with pytest.raises(HostError, match="another measurement"), ksm.preserved():
            pytest.fail("both measure")
        assert written == []
    with ksm.preserved():
        pass  # free again


def test_what_is_right_already_is_not_written(written: list[tuple[str, str]]) -> None:
    ksm.write_knobs({"max_page_sharing": "256", "use_zero_pages": "0"})
    assert written == []


def test_advisor_learns_on_while_others_are_set(written: list[tuple[str, str]]) -> None:
    ksm.write_knobs({"use_zero_pages": "1", "advisor_mode": "scan-time", "run": "0"})
    assert written == [("use_zero_pages", "1"), ("run", "0")]


def test_marked_memory_is_found() -> None:
    me = f"{os.getpid()} ("
    assert not any(found.startswith(me) for found in ksm.processes_marked())
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_MERGEABLE)
        assert any(found.startswith(me) for found in ksm.processes_marked())
        memory.madvise(mmap.MADV_UNMERGEABLE)


def test_ksmd_is_a_kernel_thread() -> None:
    pid = ksm.ksmd_pid()
    assert Path(f"/proc/{pid}/comm").read_text() == "ksmd\n"
    assert Path(f"/proc/{pid}/cmdline").read_text() == ""
