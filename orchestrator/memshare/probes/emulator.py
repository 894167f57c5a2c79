# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this QEMU run the plugin? Judged from a QEMU that was started with it."""

import re

import msgspec

from memshare.probes import Finding, Probe, Verdict

#: What `./dev compat` runs the tests on.
TESTED = ("7.2", "10.0", "11.1")

DISTRIBUTION = "use a QEMU as distributions build it: with plugins, and with modules"

NO_PLUGINS = re.compile(r"-plugin: invalid option|plugin interface not enabled")
WRONG_API = re.compile(r"requires API version (\d+), but this QEMU supports only (.+)")
LACKS = re.compile(r"this qemu lacks .+")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine type of this QEMU."""

    name: str
    is_default: bool = False
    #: Whether its RAM is a memory backend when nobody asks for one; no other RAM is shared.
    has_backend: bool = True


class Emulator(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a QEMU. Empty is what could not be seen."""

    path: str
    #: Why it could not be started at all.
    problem: str = ""
    #: The first line of what --version prints.
    introduction: str = ""
    plugin: str = ""
    #: What it wrote to stderr when it was started with the plugin, without a machine.
    messages: str = ""
    #: The version of the plugin, when its object answered.
    plugin_version: str = ""
    has_kvm: bool = False
    machines: tuple[Machine, ...] = ()

    @property
    def version(self) -> str:
        """Its version, for instance `7.2.22`; empty if it is no QEMU."""
        match = re.match(r"QEMU emulator version (\d[\w.+-]*)", self.introduction)
        return match[1] if match else ""

    @property
    def last_words(self) -> str:
        """The last line of its messages."""
        return (self.messages.strip().splitlines() or ["it said nothing"])[-1]


def executable(seen: Emulator) -> Finding:
    """Whether it can be started."""
    if seen.problem:
        return Finding(Verdict.FAIL, seen.problem, "name a QEMU with --qemu")
    return Finding(Verdict.PASS, seen.path)


def version(seen: Emulator) -> Finding | None:
    """Whether it is a QEMU, and one that was tried."""
    if seen.problem:
        return None
    if not seen.version:
        said = f"it says: {seen.introduction}" if seen.introduction else "it says nothing of itself"
        return Finding(
            Verdict.FAIL, f"not a QEMU that runs machines; {said}", "name a QEMU with --qemu"
        )
    if seen.version.startswith(tuple(f"{tested}." for tested in TESTED)):
        return Finding(Verdict.PASS, seen.version)
    return Finding(
        Verdict.WARN,
        f"{seen.version}: memshare is tested with {', '.join(TESTED)}",
        "try it with guests that you can lose",
    )


def plugins(seen: Emulator) -> Finding | None:
    """Whether it takes plugins."""
    if not seen.version or not seen.plugin:
        return None
    if NO_PLUGINS.search(seen.messages):
        return Finding(Verdict.FAIL, "built without plugins", DISTRIBUTION)
    return Finding(Verdict.PASS, "built in")


def plugin_api(seen: Emulator) -> Finding | None:
    """Whether it accepts the version of the plugin API that ours names."""
    if wrong := WRONG_API.search(seen.messages):
        return Finding(
            Verdict.FAIL,
            f"memshare names plugin API {wrong[1]}, this QEMU takes {wrong[2]}",
            "use a memshare that knows this QEMU",
        )
    if seen.plugin_version or LACKS.search(seen.messages):
        return Finding(Verdict.PASS, "accepted")
    return None


def symbols(seen: Emulator) -> Finding | None:
    """Whether it exports what the plugin calls."""
    if lacks := LACKS.search(seen.messages):
        return Finding(Verdict.FAIL, lacks[0], DISTRIBUTION)
    if seen.plugin_version:
        return Finding(Verdict.PASS, "all that the plugin calls are exported")
    return None


def loads(seen: Emulator) -> Finding | None:
    """Whether the plugin was there after all that. Another probe may have told why not."""
    if not seen.version:
        return None
    if not seen.plugin:
        return Finding(Verdict.FAIL, "no plugin is installed", "say where it is with --plugin")
    if seen.plugin_version:
        return Finding(Verdict.PASS, f"memshare {seen.plugin_version} answers")
    if any(known.search(seen.messages) for known in (NO_PLUGINS, WRONG_API, LACKS)):
        return None
    return Finding(
        Verdict.FAIL, f"the plugin did not load: {seen.last_words}", f"look at {seen.plugin}"
    )


def accelerator(seen: Emulator) -> Finding | None:
    """Whether it can do better than emulate."""
    if not seen.plugin_version:
        return None
    if seen.has_kvm:
        return Finding(Verdict.PASS, "KVM is built in")
    return Finding(Verdict.WARN, "built without KVM: guests are emulated", "use a QEMU with KVM")


def machines(seen: Emulator) -> Finding | None:
    """Whether the machine that it runs by default has RAM of a kind that is shared."""
    if not seen.machines:
        return None
    usable = sum(machine.has_backend for machine in seen.machines)
    default = next((machine for machine in seen.machines if machine.is_default), None)
    told = f"{usable} of {len(seen.machines)} machine types have RAM that can be shared"
    if usable == 0 or (default is not None and not default.has_backend):
        return Finding(
            Verdict.WARN,
            f"{told}, the default one has not" if usable else told,
            "give the guest its RAM by -machine memory-backend=",
        )
    return Finding(Verdict.PASS, told)


PROBES: tuple[Probe[Emulator], ...] = (
    executable,
    version,
    plugins,
    plugin_api,
    symbols,
    loads,
    accelerator,
    machines,
)
