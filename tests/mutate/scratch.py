# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy of the sources with a build of its own, where code may be broken."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.mutate.table import Mutant

ROOT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[Path]:
    """What git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())


class Scratch:
    """build-mutate/: source/, build/, and package/, which is what Python imports."""

    def __init__(self) -> None:
        self._base = ROOT / "build-mutate"
        self.source = self._base / "source"
        self._build, self._package = self._base / "build", self._base / "package" / "memshare"
        self._bin = Path(sys.executable).parent
        site = [path for path in sys.path if path.endswith("site-packages")]
        # Not a virtual environment: in one, an editable memshare would be found first.
        self._python = str(Path(sys.base_prefix) / "bin" / "python3")
        self._environment = {
            **os.environ,
            "MEMSHARE_BUILD": str(self._build),
            "PYTHONPATH": os.pathsep.join([str(self._base / "package"), str(self.source), *site]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def prepare(self) -> None:
        """Bring the copy up to date, undoing what a run that was ended left behind, and build it."""
        files = tracked_files()
        for path in files:
            self._put(path, (ROOT / path).read_bytes())
        for old in self.source.rglob("*"):
            if old.is_file() and old.relative_to(self.source) not in set(files):
                old.unlink()
        if not (self._build / "build.ninja").exists():
            shutil.rmtree(self._build, ignore_errors=True)
            self._do([self._bin / "meson", "setup", self._build, self.source, "-Db_ndebug=false"])
        if not self.build():
            raise SystemExit("error: the unbroken sources do not build")
        shutil.rmtree(self._package, ignore_errors=True)
        shutil.copytree(
            self.source / "orchestrator" / "memshare",
            self._package,
            copy_function=os.symlink,
        )
        (core,) = (self._build / "orchestrator").glob("_core*.so")
        (self._package / core.name).symlink_to(core)

    def _put(self, path: Path, data: bytes) -> None:
        """Only where it differs: what is the same is not compiled again."""
        target = self.source / path
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            shutil.copymode(ROOT / path, target)

    def _do(self, command: list[str | Path]) -> None:
        path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "PATH": path})

    def build(self) -> bool:
        """False: it does not compile."""
        command = ["ninja", "-C", str(self._build), "--quiet", "-j2"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return run.returncode == 0

    def put_mutant(self, mutant: Mutant) -> None:
        """Break one thing."""
        text = (ROOT / mutant.file).read_text()
        self._put(Path(mutant.file), text.replace(mutant.old, mutant.new).encode())

    def put_back(self, mutant: Mutant) -> None:
        """Mend it."""
        self._put(Path(mutant.file), (ROOT / mutant.file).read_bytes())

    def passes(self, test: str, timeout_seconds: float) -> bool:
        """Run one test in the scratch build; a hang is a failure."""
        command = (
            [self._python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
            if test.startswith("tests/")
            else [str(self._bin / "meson"), "test", "-C", str(self._build), "--no-rebuild", test]
        )
        process = subprocess.Popen(
            command,
            cwd=self.source,
            env=self._environment if test.startswith("tests/") else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout_seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            # What the test started may hang as well: the whole session of it ends.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
