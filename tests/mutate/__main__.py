# SPDX-License-Identifier: GPL-2.0-or-later
"""``./dev mutate``: breaks each line that cites an invariant, and sees whether a test notices.

Results are kept in build-mutate/: a run that was ended goes on where it was, and only what has changed
is tried again. Prints a line for each mutant, and one of JSON. Ends with 1 where a mutant survives
that is not explained, where an explained one is caught, and where a citation has no mutant.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from pathlib import Path

from tests.mutate.scratch import ROOT, Scratch, tracked_files
from tests.mutate.table import FILES, MUTANTS, Mutant

TIMEOUT_SECONDS = 150.0
#: A test that takes so much longer than it did on the unbroken sources hangs.
HANGS_AFTER_SECONDS, HANGS_AFTER_FACTOR = 40.0, 10.0
RESULTS = ROOT / "build-mutate" / "results.json"
TESTED = re.compile(
    r"^(qemu-plugin|orchestrator/memshare/engine\.py|tests/(engine|lib|unit|conftest))"
)
CITATION = re.compile(r"\bI\d+\b")


def problems_of_table() -> list[str]:
    """Name edits that no longer fit, and citations without a mutant."""
    problems = []
    for file in FILES:
        text = (ROOT / file).read_text()
        of_file = [mutant for mutant in MUTANTS if mutant.file == file]
        for number, line in enumerate(text.splitlines(), start=1):
            if CITATION.search(line) and not any(m.citation in line for m in of_file):
                problems.append(f"{file}:{number}: no mutant for this citation")
        for mutant in of_file:
            if text.count(mutant.old) != 1:
                problems.append(f"{mutant.name}: its code is there {text.count(mutant.old)} times")
            if text.count(mutant.citation) < 1:
                problems.append(f"{mutant.name}: its citation is gone")
    return problems


class Results:
    """What was found before, by a digest of all that it may depend on."""

    def __init__(self) -> None:
        self._known: dict[str, float] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        digest = hashlib.sha256()
        for path in tracked_files():
            if TESTED.match(str(path)):
                digest.update(str(path).encode() + b"\0" + (ROOT / path).read_bytes())
        self._sources = digest.hexdigest()

    def _key(self, *parts: object) -> str:
        return hashlib.sha256(repr((self._sources, parts)).encode()).hexdigest()

    def get(self, *parts: object) -> float | None:
        """None: not known."""
        return self._known.get(self._key(*parts))

    def put(self, value: float, *parts: object) -> None:
        """Kept at once."""
        self._known[self._key(*parts)] = value
        RESULTS.write_text(json.dumps(self._known, indent=1))


def green_seconds(scratch: Scratch, results: Results, test: str) -> float:
    """How long a test takes on the unbroken sources; 0: it fails there, so it could not tell."""
    known = results.get(test)
    if known is None:
        started = time.monotonic()
        known = time.monotonic() - started if scratch.passes(test, TIMEOUT_SECONDS) else 0.0
        if known:
            results.put(known, test)
    return known


def is_caught(scratch: Scratch, mutant: Mutant, timeouts: dict[str, float]) -> bool:
    """Whether one of its tests fails."""
    scratch.put_mutant(mutant)
    try:
        if not scratch.build():
            raise SystemExit(f"error: {mutant.name} does not compile, so it proves nothing")
        return not all(scratch.passes(test, timeouts[test]) for test in mutant.tests)
    finally:
        scratch.put_back(mutant)


def main() -> int:
    """Try all mutants, or those named; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="./dev mutate", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="all without any")
    names = parser.parse_args().names
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    problems = problems_of_table()
    if problems or not chosen:
        print("\n".join(problems) or "error: no mutant has that name", file=sys.stderr)
        return 1
    scratch = Scratch()
    scratch.prepare()
    results = Results()
    timeouts = {}
    for test in sorted({test for mutant in chosen for test in mutant.tests}):
        taken = green_seconds(scratch, results, test)
        if not taken:
            print(f"error: {test} fails on the unbroken sources", file=sys.stderr)
            return 1
        timeouts[test] = max(HANGS_AFTER_SECONDS, HANGS_AFTER_FACTOR * taken)
    caught, survived, bad = 0, 0, 0
    for mutant in chosen:
        started = time.monotonic()
        known = results.get(mutant)
        result = is_caught(scratch, mutant, timeouts) if known is None else bool(known)
        results.put(result, mutant)
        caught += result
        survived += not result
        bad += result == bool(mutant.explanation)
        word = "caught" if result else "survived"
        note = f" ({mutant.explanation})" if mutant.explanation else ""
        where = f"{Path(mutant.file).name}: {mutant.citation}"
        print(
            f"{word:8} {mutant.name} [{where}] {time.monotonic() - started:.0f} s{note}", flush=True
        )
    scratch.build()
    print(json.dumps({"mutants": len(chosen), "caught": caught, "survived": survived, "bad": bad}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
