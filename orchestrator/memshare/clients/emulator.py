# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a QEMU to see what it is: once to ask for its version, once with the plugin and no machine.

Nothing is left behind: it ends by itself, or is killed when it does not answer.
"""

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from memshare.model import PLUGIN_FILE
from memshare.probes.emulator import Emulator, Machine

#: Far more than a start takes, also where guests keep every processor busy.
ANSWER_SECONDS = 60.0

OBJECT = "/objects/memshare0"
NO_BROKER = "/dev/null"

QUESTIONS = (
    {"execute": "qmp_capabilities"},
    {
        "execute": "qom-get",
        "arguments": {"path": OBJECT, "property": "stats"},
        "id": "stats",
    },
    {"execute": "query-kvm", "id": "kvm"},
    {"execute": "query-machines", "id": "machines"},
    {"execute": "quit"},
)


def installed_plugin() -> Path | None:
    """Where a package has put the plugin; None where there is none."""
    folders = ("lib", f"lib/{sysconfig.get_config_var('MULTIARCH')}", "lib64")
    places = [Path("/usr", folder, "memshare", PLUGIN_FILE) for folder in folders]
    return next((place for place in places if place.exists()), None)


def look(qemu: str, plugin: Path | None) -> Emulator:
    """Start it, and tell what was seen; what cannot be started is told too."""
    found = shutil.which(qemu)
    if found is None:
        problem = f"{qemu}: not executable" if Path(qemu).exists() else f"{qemu}: no such program"
        return Emulator(path=qemu, problem=problem)
    try:
        version, _ = start(found, "--version")
    except OSError as error:
        return Emulator(path=found, problem=f"{found}: {(error.strerror or str(error)).lower()}")
    introduction = (version.splitlines() or [""])[0]
    seen = Emulator(path=found, introduction=introduction, plugin=str(plugin or ""))
    # Whatever does not know --version would not know what follows either.
    return seen if plugin is None or not seen.version else look_inside(seen)


def look_inside(seen: Emulator) -> Emulator:
    """Start it with the plugin, and ask its monitor."""
    plugin = seen.plugin.replace(",", ",,")
    output, messages = start(
        seen.path,
        *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-qmp", "stdio", "-plugin", f"{plugin},socket={NO_BROKER}"),
        questions="".join(json.dumps(question) for question in QUESTIONS),
    )
    answers = read_answers(output)
    stats, kvm = answers.get("stats", {}), answers.get("kvm", {})
    return Emulator(
        path=seen.path,
        introduction=seen.introduction,
        plugin=seen.plugin,
        messages=messages,
        plugin_version=str(stats.get("version", "")),
        has_kvm=bool(kvm.get("present", False)),
        machines=tuple(
            Machine(
                name=machine["name"],
                is_default=machine.get("is-default", False),
                has_backend="default-ram-id" in machine,
            )
            for machine in answers.get("machines", [])
            if machine["name"] != "none"
        ),
    )


def read_answers(output: str) -> dict[str, Any]:
    """Return what was answered to each question that has an id; an error is no answer."""
    answers = {}
    for line in output.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict) and "id" in message and "return" in message:
            answers[message["id"]] = message["return"]
    return answers


def start(program: str, *arguments: str, questions: str = "") -> tuple[str, str]:
    """Run to the end; return stdout and stderr. One that does not end is killed, and that is said."""
    try:
        done = subprocess.run(
            [program, *arguments],
            input=questions.encode(),
            capture_output=True,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {ANSWER_SECONDS:.0f} s"
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
