# SPDX-License-Identifier: GPL-2.0-or-later
"""What no off-the-shelf linter checks: invariants are cited and attacked, licences are named.

ARCHITECTURE.md owns the list of invariants, one line each: `- **I3** A slot's bytes ...`. A line that
contains `(open)` names one that is not upheld yet; all others need a comment `I3` in code and a test
`test_I3_*`.
"""

import re
import subprocess
import sys
from pathlib import Path

SOURCES = {".c", ".cs", ".h", ".ps1", ".py", ".sh", ".toml", ".build", ".map", ".rst"}
INVARIANT = re.compile(r"^- \*\*(I\d+)\*\* (.*)$", re.MULTILINE)


def tracked_files(root: Path) -> list[Path]:
    """Return the files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(name) for name in listed.split("\0") if name and (root / name).is_file()]


def missing_licences(root: Path, files: list[Path]) -> list[str]:
    """Name the sources whose first five lines have no SPDX line."""
    return [
        f"{path}: no SPDX-License-Identifier in the first five lines"
        for path in files
        if (path.suffix in SOURCES or path.name == "dev")
        and (text := (root / path).read_text(encoding="utf-8", errors="replace")).strip()
        and not any("SPDX-License-Identifier:" in line for line in text.splitlines()[:5])
    ]


def unproven_invariants(root: Path, files: list[Path]) -> list[str]:
    """Name the invariants that no code cites or no test attacks."""
    architecture = root / "ARCHITECTURE.md"
    if not architecture.exists():
        return []
    promised = [
        name for name, text in INVARIANT.findall(architecture.read_text()) if "(open)" not in text
    ]
    if not promised:
        return ["ARCHITECTURE.md: no invariants found; is the list still written `- **I1** ...`?"]
    code, tests = "", ""
    for path in files:
        if path.suffix in {".c", ".h", ".py"}:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
            if path.parts[0] == "tests":
                tests += text
            else:
                code += text
    problems = []
    for name in promised:
        if not re.search(rf"\b{name}\b", code):
            problems.append(f"{name}: no code cites it")
        if f"test_{name}_" not in tests:
            problems.append(f"{name}: no test named test_{name}_*")
    return problems


def main() -> int:
    """Print each problem; 1 when there is one."""
    root = Path(__file__).resolve().parents[2]
    files = tracked_files(root)
    problems = missing_licences(root, files) + unproven_invariants(root, files)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
