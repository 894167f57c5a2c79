# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin in `<qemu:commandline>`: `-plugin PATH,group=...` as libvirt passes it to QEMU.

Ours is told from others' plugins by its file's name, wherever it is installed.
"""

from itertools import pairwise
from pathlib import PurePosixPath

import msgspec
from lxml import etree

from memshare.domain.document import Element, append, is_empty, remove
from memshare.model import PLUGIN_FILE, Option

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
COMMANDLINE = f"{{{NAMESPACE}}}commandline"
ARGUMENT = f"{{{NAMESPACE}}}arg"

RUNTIME_DIR = "/run/memshare"
#: Pages a second of a guest that nobody steers yet: the plugin's own default.
SCAN_RATE_DEFAULT = 10_000
#: Its arguments that follow from the domain's option.
OURS = ("group", "mode", "socket", "scan-rate")


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host has the plugin and its broker's sockets."""

    path: str
    runtime_dir: str = RUNTIME_DIR

    def argument(self, option: Option, group: str, before: str | None = None) -> str:
        """Return what follows -plugin. Only what differs from the plugin's defaults is said.

        before: what followed it so far. What only its owner can know, such as `cpu-limit=`, is kept.
        """
        words = [_escape(self.path), f"group={group}", f"mode={option.mode}"]
        if before is not None and (place_of(before).runtime_dir, group_in(before)) == (
            self.runtime_dir,
            group,
        ):
            words += [word for word in _split(before)[1:] if word.startswith("socket=")]
        elif self.runtime_dir != RUNTIME_DIR:
            words.append(f"socket={_escape(self.runtime_dir)}/{group}.sock")
        if (rate := option.clamp(SCAN_RATE_DEFAULT)) != SCAN_RATE_DEFAULT:
            words.append(f"scan-rate={rate}")
        if before is not None:
            words += [word for word in _split(before)[1:] if word.partition("=")[0] not in OURS]
        return ",".join(words)


def _escape(text: str) -> str:
    return text.replace(",", ",,")


def _split(argument: str) -> list[str]:
    """Return the words between single commas; a double one is part of its word, and stays double."""
    return [word.replace("\0", ",,") for word in argument.replace(",,", "\0").split(",")]


def is_ours(argument: str) -> bool:
    """Whether what follows -plugin names our plugin's file."""
    return PurePosixPath(place_of(argument).path).name == PLUGIN_FILE


def find(root: Element) -> list[tuple[Element, Element]]:
    """Return each `-plugin` of ours with its value, as the two elements that they are."""
    found = []
    for commandline in root.iterfind(COMMANDLINE):
        arguments = commandline.findall(ARGUMENT)
        for flag, value in pairwise(arguments):
            if flag.get("value") in ("-plugin", "--plugin") and is_ours(value.get("value", "")):
                found.append((flag, value))
    return found


def argument_of(root: Element) -> str | None:
    """Return what follows -plugin in this domain, None when our plugin is not in it."""
    found = find(root)
    return found[0][1].get("value") if found else None


def group_in(argument: str) -> str:
    """Return the group that such an argument names."""
    return _value(argument, "group") or "default"


def place_of(argument: str) -> Plugin:
    """Return where such an argument says that plugin and sockets are."""
    socket = _value(argument, "socket")
    return Plugin(
        path=_split(argument)[0].removeprefix("file=").replace(",,", ","),
        runtime_dir=str(PurePosixPath(socket).parent) if socket else RUNTIME_DIR,
    )


def _value(argument: str, name: str) -> str | None:
    """Return what such an argument says of a name, the last word of several."""
    words = [word.partition("=") for word in _split(argument)[1:]]
    values = [value.replace(",,", ",") for key, _, value in words if key == name]
    return values[-1] if values else None


def write(root: Element, argument: str | None) -> None:
    """Have the domain load the plugin with this argument, once; None: not at all."""
    found = find(root)
    if argument is not None and found:
        found[0][1].set("value", argument)
        found = found[1:]
    elif argument is not None:
        commandline = root.find(COMMANDLINE)
        if commandline is None:
            # Declared here, as lxml cannot add a namespace to a root; libvirt moves it there.
            commandline = etree.Element(COMMANDLINE, nsmap={"qemu": NAMESPACE})
            append(root, commandline)
        for value in ("-plugin", argument):
            append(commandline, etree.Element(ARGUMENT, {"value": value}, commandline.nsmap))
    for pair in found:
        commandline = pair[0].getparent()
        assert commandline is not None
        for element in pair:
            remove(element)
        if is_empty(commandline):
            remove(commandline)
