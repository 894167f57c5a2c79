# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of stored recordings, byte for byte, and of bad ones, in one line.

After a change that is meant: `python -m tests.lib.experiment`, and read the difference.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from tests.lib import experiment

from memshare.cli import root
from memshare.errors import MemshareError, UsageError
from memshare.experiment import page, plots, recording, report
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import RunFolder, RunResult, read_file, write_file

MADE = ("report.json", "report.csv", "report.html")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored recordings, without what was made of them."""
    copy = tmp_path / "stored"
    shutil.copytree(experiment.GOLDEN, copy, ignore=shutil.ignore_patterns("report.*"))
    return copy


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, ["bench", *map(str, arguments)])


def change(folder: RunFolder, **changes: object) -> None:
    result = read_file(folder.result, RunResult)
    write_file(folder.result, msgspec.structs.replace(result, **changes))


def test_report_is_as_stored(folder: Path) -> None:
    experiment.write_golden(folder)
    for name in MADE:
        assert (folder / name).read_bytes() == (experiment.GOLDEN / name).read_bytes(), name


class Page(HTMLParser):
    """Looks at tags: what is loaded, whether all that is opened is closed, and what has a name."""

    VOID = ("meta", "link", "img", "br", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.unnamed: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if names.get("role") in ("img", "region") and not names.get("aria-label"):
            self.unnamed.append(tag)
        if tag in ("h2",) and "id" in names:
            self.ids.append(names["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else(folder: Path) -> None:
    done = run("report", folder)
    assert (done.exit_code, done.stdout) == (
        0,
        "With memshare, 1.0 GiB of guest RAM takes 494 MiB of memory: an overcommit ratio of 2.07x, "
        "against 2.11x with KSM at full speed and 1.16x with sharing off.\n",
    )
    text = (folder / "report.html").read_text()
    seen = Page(text)
    assert seen.open == []
    assert all(link.startswith("#") for link in seen.links)
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/1999/xlink"}
    assert seen.tags.count("svg") == seen.tags.count("figcaption") == 6
    assert seen.tags.count("table") == seen.tags.count("caption") == 4
    assert seen.unnamed == []
    assert len(set(seen.ids)) == len(seen.ids)
    written = {line.rsplit("/", 1)[1] for line in done.stderr.splitlines()}
    assert written == {*MADE} | {f"{name}.svg" for name in (
        "memory", "oracle", "cpu", "savings", "throughput", "latency",
    )}  # fmt: skip


def test_plots_are_the_same_each_time(folder: Path) -> None:
    read = recording.read(folder)
    made = report.build(read)
    drawn = plots.plots_of(read, made)
    for plot in (drawn[0], drawn[-2], drawn[-1]):
        first = plots.svg(plot)
        assert first == plots.svg(plot), plot.name
        assert "<dc:date>" not in first
        shown = plots.inline(first, plot.alt)
        assert plots.INK not in shown and plots.PAPER not in shown


def test_text_of_recordings_is_no_markup(folder: Path) -> None:
    bad = "<script>alert('x')</script> & $title"
    read = recording.read(folder)
    made = report.build(
        msgspec.structs.replace(
            read,
            plan=msgspec.structs.replace(read.plan, name=bad, description=bad),
            experiment=msgspec.structs.replace(read.experiment, command=bad, host={bad: bad}),
        )
    )
    text = page.render(made, [page.Drawing(bad, bad, "<svg></svg>")])
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; $title") == 8


def test_a_ladder_tells_its_guests(tmp_path: Path) -> None:
    experiment.write_experiment(tmp_path, experiment.LADDER)
    read = recording.read(tmp_path)
    made = report.build(read)
    assert made.headline == (
        "In 2.0 GiB of memory there is room for 8 guests of 512 MiB with memshare (2.23x), against "
        "7 with KSM at full speed (1.97x) and 3 with sharing off (0.85x)."
    )
    drawn = plots.plots_of(read, made)
    assert [plot.name for plot in drawn[:2]] == ["ladder", "oracle"]
    assert "memshare 8" in drawn[0].alt
    assert "guest RAM" in plots.svg(drawn[0])
    assert "guests in the budget" in page.render(made, [])


@pytest.mark.parametrize("text", [experiment.PLAN, experiment.LADDER], ids=["phases", "ladder"])
@pytest.mark.parametrize("engine", [EngineKind.OFF, EngineKind.MEMSHARE])
def test_the_barest_recording_is_told(text: str, engine: EngineKind, tmp_path: Path) -> None:
    experiment.write_experiment(tmp_path, text)
    read = recording.read(tmp_path)
    first = read.of(engine)[0]
    result = msgspec.structs.replace(first.result, steps=(), phases={}, last_boot_seconds=0.0)
    bare = recording.Run(result=result, samples=first.samples[:1])
    read = recording.Recording(plan=read.plan, experiment=read.experiment, runs=[bare])
    made = report.build(read)
    for plot in plots.plots_of(read, made):
        assert plots.inline(plots.svg(plot), plot.alt).startswith("<svg")
    assert page.render(made, []).count("<table>") <= 2


def test_broken_contents_are_told_first(folder: Path) -> None:
    change(RunFolder(folder, 1, EngineKind.MEMSHARE), integrity="guest1: 3 files differ")
    made = report.build(recording.read(folder))
    assert made.headline.endswith("But guests found wrong contents in their memory.")
    text = page.render(made, [])
    assert '<p class="bad">memshare, repeat 1: guest1: 3 files differ</p>' in text
    assert '<dd class="bad">broken</dd>' in text and "Clean in all" not in text


def test_what_did_not_finish_is_named(folder: Path) -> None:
    RunFolder(folder, 0, EngineKind.KSM_FULL).result.unlink()
    RunFolder(folder, 1, EngineKind.KSM_FULL).result.unlink()
    made = report.build(recording.read(folder))
    assert made.missing == ["00-ksm-full", "01-ksm-full"]
    assert "Not in here, as it did not finish: 00-ksm-full." in made.caveats
    assert made.find(EngineKind.KSM_FULL) is None
    assert "KSM" not in made.headline


def test_what_was_broken_off_is_not_counted_but_its_integrity_is(folder: Path) -> None:
    one = RunFolder(folder, 0, EngineKind.MEMSHARE)
    change(one, ended="guest1 was killed", integrity="guest0: 1 file differs")
    one.samples.unlink()
    made = report.build(recording.read(folder))
    assert "memshare, repeat 0, was broken off and is not counted: guest1 was killed." in (
        made.caveats
    )
    ours = made.find(EngineKind.MEMSHARE)
    assert ours is not None and ours.repeats == 1
    assert made.wrong == ["memshare, repeat 0: guest0: 1 file differs"]
    assert not made.is_clean


def test_others_at_work_are_told_and_the_run_before_is_not(folder: Path) -> None:
    def told() -> list[str]:
        return [one for one in report.build(recording.read(folder)).caveats if "Others" in one]

    change(RunFolder(folder, 0, EngineKind.OFF), busy_before_ratio=0.2)
    change(RunFolder(folder, 1, EngineKind.OFF), busy_before_ratio=None)
    assert told() == []
    change(RunFolder(folder, 0, EngineKind.MEMSHARE), busy_before_ratio=0.62)
    change(RunFolder(folder, 1, EngineKind.MEMSHARE), busy_before_ratio=0.5)
    assert told() == [
        "Others were at work on this host when 2 of 6 runs started: they kept up to 62% of its CPUs busy."
    ]


def test_contents_that_have_zeros_among_them_are_told(folder: Path) -> None:
    words = "KSM without use_zero_pages counts zeros among contents"

    def told() -> tuple[list[str], str]:
        read = recording.read(folder)
        made = report.build(read)
        savings = next(plot for plot in plots.plots_of(read, made) if plot.name == "savings")
        return [one for one in made.caveats if words in one], savings.caption

    caveats, caption = told()
    assert caveats == [] and words not in caption
    for repeat in range(2):
        samples = RunFolder(folder, repeat, EngineKind.KSM_FULL).samples
        text = samples.read_text()
        samples.write_text(re.sub(r'"saved_zero_bytes":\d+', '"saved_zero_bytes":null', text))
    caveats, caption = told()
    assert caveats == [f"{words}, so with KSM, full speed nothing is said of zeros."]
    assert caption.endswith(f" {words}.")


def test_half_reached_is_told(folder: Path) -> None:
    one = RunFolder(folder, 0, EngineKind.MEMSHARE)
    lines = one.oracles.read_text().splitlines(keepends=True)
    one.oracles.write_text("".join(lines[:2]))
    text = page.render(report.build(recording.read(folder)), [])
    # Both times, CPU until then and after it, both floors, and CPU a GiB, as nothing was freed yet.
    in_tables, held_against = text.split("memshare against the others</h2>")
    assert in_tables.count("<small>in 1 of 2 only</small>") == 7
    # The floor against both other engines, CPU until then against the one that has it.
    assert held_against.count("<small>in 1 of 2 only</small>") == 3
    other = RunFolder(folder, 1, EngineKind.MEMSHARE)
    other.oracles.unlink()
    text = page.render(report.build(recording.read(folder)), [])
    assert text.count("not reached") == 6


def test_without_sharing_off_there_is_no_slowdown(folder: Path) -> None:
    for repeat in range(2):
        RunFolder(folder, repeat, EngineKind.OFF).result.unlink()
    read = recording.read(folder)
    made = report.build(read)
    assert all(view.slowdown is None for engine in made.engines for view in engine.guests)
    throughput = next(plot for plot in plots.plots_of(read, made) if plot.name == "throughput")
    assert "operations a second" in plots.svg(throughput)


def no_experiment(folder: Path) -> str:
    (folder / "experiment.json").unlink()
    return f"{folder}/experiment.json: no such file or directory"


def no_plan(folder: Path) -> str:
    (folder / "plan.toml").unlink()
    return f"{folder}/plan.toml: no such file or directory"


def no_run(folder: Path) -> str:
    for result in folder.glob("*/result.json"):
        result.unlink()
    return f"{folder}: no run has finished"


def bad_line(folder: Path) -> str:
    file = folder / "00-off" / "samples.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace('"guests_up":0', '"guests_up":"0"')
    file.write_text("\n".join(lines))
    return f"{file}:3: Expected `int`, got `str` - at `$.guests_up`"


def half_line(folder: Path) -> str:
    file = folder / "01-memshare" / "guests.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    count = len(file.read_bytes().splitlines())
    return f"{file}:{count}: Input data was truncated"


def no_samples(folder: Path) -> str:
    file = folder / "00-off" / "samples.jsonl"
    file.unlink()
    return f"{file}: no sample"


def back_in_time(folder: Path) -> str:
    file = folder / "00-off" / "oracles.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[1], lines[0]]))
    return f"{file}:2: time goes back from 20.0 to 12.0 s"


def another_run(folder: Path) -> str:
    file = folder / "00-off" / "result.json"
    shutil.copy(folder / "01-memshare" / "result.json", file)
    return f"{file}: is of another run, repeat 1 with memshare"


def a_folder_for_a_file(folder: Path) -> str:
    file = folder / "00-off" / "oracles.jsonl"
    file.unlink()
    file.mkdir()
    return f"{file}: is a directory"


@pytest.mark.parametrize(
    "spoil",
    [
        no_experiment,
        no_plan,
        no_run,
        bad_line,
        half_line,
        no_samples,
        back_in_time,
        another_run,
        a_folder_for_a_file,
    ],
)
def test_bad_folders_give_one_line(folder: Path, spoil: Callable[[Path], str]) -> None:
    expected = spoil(folder)
    for verb in (["report", folder], ["compare", experiment.GOLDEN, folder]):
        done = run(*verb)
        assert isinstance(done.exception, UsageError)
        assert str(done.exception) == expected
    assert not (folder / "report.html").exists()


def test_a_report_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "plots_of", lambda *_: [])
    (folder / "report.csv").mkdir()
    done = run("report", folder)
    assert isinstance(done.exception, MemshareError)
    assert str(done.exception) == f"{folder}/report.csv: is a directory"


def test_compare_by_engine(folder: Path) -> None:
    for repeat in range(2):
        RunFolder(folder, repeat, EngineKind.KSM_FULL).result.unlink()
        one = RunFolder(folder, repeat, EngineKind.MEMSHARE)
        one.samples.write_text(one.samples.read_text().replace('"used_bytes":', '"used_bytes":1'))
    done = run("compare", experiment.GOLDEN, folder, "-o", "json")
    assert done.exit_code == 0
    rows = {(row["engine"], row["figure"]): row for row in json.loads(done.stdout)["figures"]}
    assert {engine for engine, _ in rows} == {"off", "memshare"}
    used = rows["memshare", "used_bytes"]
    assert used["b"] == used["a"] + 1_000_000_000 == used["a"] + used["difference"]
    assert (used["a_values"], used["b_values"], used["difference_low"]) == (2, 2, None)
    assert used["p"] == pytest.approx(1 / 3)
    same = rows["off", "overcommit_ratio"]
    assert (same["difference"], same["p"]) == (0.0, 1.0)
    assert rows["memshare", "rate_load_web"]["a_values"] == 4


def test_compare_as_table_and_csv(folder: Path) -> None:
    table = run("compare", experiment.GOLDEN, folder).stdout
    assert re.search(r"^ memshare +overcommit +2.07x +2.07x +\+0.00x +- +1.000 *$", table, re.M)
    rows = list(csv.DictReader(io.StringIO(run("compare", folder, folder, "-o", "csv").stdout)))
    assert {row["difference"] for row in rows} == {"0.0"}


def test_compare_of_strangers(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for one in (*other.glob("*-memshare"), *other.glob("*-ksm-full"), *folder.glob("*-off")):
        (one / "result.json").unlink()
    done = run("compare", folder, other)
    assert str(done.exception) == f"{folder} and {other} have no engine in common"
