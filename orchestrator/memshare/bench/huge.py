# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench huge`: what splitting huge pages saves and costs, so that one can say when it pays. Needs root.

A region of huge pages, in each of which the same part can be shared: a run of pages like one in every other huge page, the
rest unlike all others. For each part one engine, which decides by itself whether it splits (it does from a quarter on):

huge   reads at random places of what is not shared, before the engine comes, all of it in huge pages
after  the same reads once the engine has converged
small  the same reads and contents in a region without huge pages, with an engine as well: what after is, or would be,
       once it has split

A read is of eight bytes, and none tells where the next will be, so the processor has many under way: the cost
of walking page tables shows as far as it does in a program that can be helped like this.
"""

import mmap
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
import numpy as np
import numpy.typing as npt

from memshare.bench.rig import finish, machine_facts, number, parse_size, session
from memshare.cli import run
from memshare.engine import Engine
from memshare.errors import MeasurementError
from memshare.render import Column, Unit, render_table

PAGE_BYTES = mmap.PAGESIZE
PAGE_WORDS = PAGE_BYTES // 8
HUGE_BYTES = 2 << 20
HUGE_PAGES = HUGE_BYTES // PAGE_BYTES
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
READS = 4 << 20
PASSES = 12  # the engine waits for a few before it splits
RULE_PART = 1 / 4

Words = npt.NDArray[np.uint64]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One part. *_ns are of a read, medians; saved_ratio is what the engine freed, of the region."""

    part: float
    huge_ns: float
    after_ns: float
    small_ns: float
    was_split: bool
    saved_ratio: float
    small_saved_ratio: float
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


@contextmanager
def region(size: int, part: float, advice: int) -> Iterator[mmap.mmap]:
    """Memory of so many bytes, aligned to huge pages by the kernel, filled."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(advice)
        words: Words = np.frombuffer(memory, dtype=np.uint64)
        pages = words.reshape(-1, PAGE_WORDS)
        pages[:] = np.arange(1, len(pages) + 1, dtype=np.uint64)[:, None] << np.uint64(20)
        common = int(HUGE_PAGES * part)
        blocks = pages.reshape(-1, HUGE_PAGES, PAGE_WORDS)
        blocks[:, :common] = np.arange(1, common + 1, dtype=np.uint64)[None, :, None]
        del words, pages, blocks
        yield memory


def read_ns(memory: mmap.mmap, part: float, repeats: int) -> float:
    """Nanoseconds a random read of what is not common takes; the median of so many rounds."""
    words: Words = np.frombuffer(memory, dtype=np.uint64)
    chance = np.random.default_rng(1)
    block_words = HUGE_BYTES // 8
    blocks = chance.integers(0, len(words) // block_words, READS)
    places = blocks * block_words + chance.integers(int(block_words * part), block_words, READS)
    into = np.empty(READS, dtype=np.uint64)
    times = []
    for _ in range(repeats + 1):  # the first brings page tables in
        start = time.perf_counter_ns()
        np.take(words, places, out=into, mode="clip")
        times.append((time.perf_counter_ns() - start) / READS)
    return statistics.median(times[1:])


def huge_bytes() -> int:
    """Bytes of this process that are in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("AnonHugePages:"))
    return int(line.split()[1]) << 10


def share(memory: mmap.mmap, part: float, repeats: int) -> tuple[float, float]:
    """Have an engine converge: what a read takes then, and which part of the region was freed."""
    with Engine(nothing_pinned=True) as engine:
        engine.register(memory)
        for _ in range(PASSES):
            engine.scan_once()
        stats = engine.stats()
        took = read_ns(memory, part, repeats)
        engine.detach()
    return took, int(stats["saved_content_bytes"]) / len(memory)


def measure(size: int, part: float, repeats: int, facts: dict[str, object]) -> Result:
    """One part, in huge pages and without."""
    before = huge_bytes()
    with region(size, part, mmap.MADV_HUGEPAGE) as memory:
        in_huge = huge_bytes() - before
        if in_huge < size * 9 // 10:
            raise MeasurementError(f"only {in_huge >> 20} of {size >> 20} MiB are in huge pages")
        huge = read_ns(memory, part, repeats)
        after, saved = share(memory, part, repeats)
    with region(size, part, mmap.MADV_NOHUGEPAGE) as memory:
        small, small_saved = share(memory, part, repeats)
    return msgspec.convert(
        {
            "part": part,
            "huge_ns": huge,
            "after_ns": after,
            "small_ns": small,
            "was_split": saved > 0,
            "saved_ratio": saved,
            "small_saved_ratio": small_saved,
            "size_bytes": size,
            **facts,
        },
        Result,
    )


def misses(results: Sequence[Result]) -> list[str]:
    """Where the engine did not do what its rule says. Pure."""
    return [
        f"{result.part:.0%} can be shared, and huge pages were {'' if result.was_split else 'not '}split"
        for result in results
        if result.was_split != (result.part >= RULE_PART)
    ]


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("part", "can be shared"),
        Column("split", "split"),
        Column("saved", "saved", Unit.COUNT),
        Column("huge", "huge ns", Unit.COUNT),
        Column("after", "after ns", Unit.COUNT),
        Column("small", "small ns", Unit.COUNT),
        Column("slower", "small/huge", Unit.COUNT),
    ]
    records = [
        {
            "part": f"{result.part:.1%}",
            "split": "yes" if result.was_split else "no",
            "saved": f"{result.saved_ratio:.1%}",
            "huge": number(result.huge_ns, 2),
            "after": number(result.after_ns, 2),
            "small": number(result.small_ns, 2),
            "slower": number(result.small_ns / result.huge_ns, 2),
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True)
@click.option(
    "--size", default="512M", show_default=True, callback=parse_size, help="Of the region."
)
def main(*, json_file: Path | None, repeats: int, size: int) -> None:
    """Measure what splitting huge pages saves, and what it costs random reads.

    Needs root. Exit 1 when the engine splits where it should not, or does not where it should.
    """
    with session(json_file) as progress:
        facts = machine_facts()
        results = []
        for part in PARTS:
            progress.update(f"{part:.0%} can be shared")
            results.append(measure(size, part, repeats, facts))
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench huge")
