# SPDX-License-Identifier: GPL-2.0-or-later
"""The answers that Windows Setup reads from a CD: guests/windows/autounattend.xml with what is asked for put in. Pure.

What each element means is Microsoft's: "Unattended Windows Setup Reference".
"""

import copy
from enum import StrEnum
from pathlib import Path

import msgspec
from lxml import etree

RECIPE = Path(__file__).resolve().parents[3] / "guests" / "windows"
#: Drivers of the virtio-win CD: disks of both kinds, network, the agent's port, balloon.
DRIVERS = ("viostor", "vioscsi", "NetKVM", "vioserial", "Balloon")
#: Two CDs are all that the guest has besides its disk, whose letter is C.
CD_LETTERS = ("D", "E", "F")
DRIVER_FOLDER = "drivers"

NAMESPACE = "urn:schemas-microsoft-com:unattend"
ACTION = "{http://schemas.microsoft.com/WMIConfig/2002/State}action"
KEY_VALUE = "{http://schemas.microsoft.com/WMIConfig/2002/State}keyValue"


class Firmware(StrEnum):
    """What the guest starts with, hence the layout of its disk."""

    BIOS = "bios"
    UEFI = "uefi"

    @property
    def windows_partition(self) -> int:
        """The partition that Windows is installed to, the last one of the layout."""
        return {Firmware.BIOS: 2, Firmware.UEFI: 3}[self]


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    edition is the number or the name of the image on Windows' CD. key decides which edition is installed where the CD
    leaves that open; evaluation media want none.
    """

    firmware: Firmware = Firmware.BIOS
    edition: str = "1"
    key: str = ""
    locale: str = "en-US"


def setup_answers(asked: Answers) -> bytes:
    """Return Autounattend.xml."""
    root = _read("autounattend.xml")
    _set_locale(root, asked.locale)
    paths = _one(root, "DriverPaths")
    for letter in CD_LETTERS:
        for driver in DRIVERS:
            entry = _add(paths, "PathAndCredentials")
            entry.set(ACTION, "add")
            entry.set(KEY_VALUE, str(len(paths)))
            _add(entry, "Path").text = f"{letter}:\\{DRIVER_FOLDER}\\{driver}"
    _one(root, "DiskConfiguration").insert(0, _read(f"disk-{asked.firmware}.xml"))
    _one(root, "InstallTo/u:PartitionID").text = str(asked.firmware.windows_partition)
    _one(root, "MetaData/u:Key").text = "/IMAGE/INDEX" if asked.edition.isdigit() else "/IMAGE/NAME"
    _one(root, "MetaData/u:Value").text = asked.edition
    if asked.key:
        key = etree.Element(f"{{{NAMESPACE}}}Key")
        key.text = asked.key
        _one(root, "ProductKey").insert(0, key)
    return _written(root)


def generalized_answers(asked: Answers) -> bytes:
    """Return what each clone of a generalized image is to answer: no setup, no logon, nothing to run again."""
    root = _read("autounattend.xml")
    _set_locale(root, asked.locale)
    for settings in root.findall("u:settings[@pass='windowsPE']", {"u": NAMESPACE}):
        root.remove(settings)
    for name in ("AutoLogon", "FirstLogonCommands"):
        element = _one(root, name)
        parent = element.getparent()
        assert parent is not None
        parent.remove(element)
    return _written(root)


def _set_locale(root: etree._Element, locale: str) -> None:
    for name in ("InputLocale", "SystemLocale", "UILanguage", "UserLocale"):
        for element in root.iter(f"{{{NAMESPACE}}}{name}"):
            element.text = locale


def _read(name: str) -> etree._Element:
    parser = etree.XMLParser(remove_comments=True, remove_blank_text=True)
    return copy.deepcopy(etree.parse(RECIPE / name, parser).getroot())


def _one(root: etree._Element, path: str) -> etree._Element:
    found = root.findall(f".//u:{path}", {"u": NAMESPACE})
    assert len(found) == 1, f"{path}: {len(found)} elements in the recipe, not one"
    return found[0]


def _add(parent: etree._Element, name: str) -> etree._Element:
    return etree.SubElement(parent, f"{{{NAMESPACE}}}{name}")


def _written(root: etree._Element) -> bytes:
    return etree.tostring(root, xml_declaration=True, encoding="utf-8", pretty_print=True)
