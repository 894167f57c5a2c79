# SPDX-License-Identifier: GPL-2.0-or-later
"""The domain's option: `<memshare:sharing group= mode= min-rate= max-rate= weight=/>` in `<metadata>`.

    <memshare:sharing xmlns:memshare="urn:memshare:domain:1"
                      group="tenant-a" mode="content" min-rate="0" max-rate="50000" weight="1"/>

Each attribute may be left out. A wrong one is an error and never a default: a misspelt group must not
put a guest among others.
"""

import re

from lxml import etree

from memshare.domain.document import Element, append, is_empty, remove
from memshare.errors import MemshareError
from memshare.model import Mode, Option

NAMESPACE = "urn:memshare:domain:1"
PREFIX = "memshare"
TAG = f"{{{NAMESPACE}}}sharing"

RATE_MAX = (1 << 63) - 1
WEIGHT_MAX = 10_000
#: What the broker takes for a group's name, which is also that of its socket.
GROUP_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,62}")


DEFAULT = Option()


def check_group_name(name: str, what: str) -> str:
    """Return the name; raises MemshareError, which says what it was to be, when it is none."""
    if not GROUP_NAME.fullmatch(name):
        raise MemshareError(
            f"{what}={name!r} is no group name",
            "1 to 63 characters of a-z 0-9 . _ -, not starting with a dot",
        )
    return name


def _number(element: Element, name: str, low: int, high: int) -> int | None:
    text = element.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise MemshareError(
            f"<{PREFIX}:sharing {name}={text!r}> is not a number from {low} to {high}"
        )
    return int(text)


def from_element(element: Element) -> Option:
    """Return what one `<memshare:sharing>` says; raises MemshareError with what is wrong in it."""
    if element.tag != TAG:
        local = etree.QName(element).localname
        raise MemshareError(f"<{PREFIX}:{local}> is unknown; <{PREFIX}:sharing> was expected")
    known = Option.__struct_encode_fields__
    for name in element.attrib:
        if name not in known:
            raise MemshareError(
                f"<{PREFIX}:sharing {name}=...> is unknown", f"known are {', '.join(known)}"
            )
    if not is_empty(element):
        raise MemshareError(f"<{PREFIX}:sharing> has contents; everything is in its attributes")
    group, mode = element.get("group"), element.get("mode", DEFAULT.mode)
    if mode not in list(Mode):
        raise MemshareError(f"<{PREFIX}:sharing mode={mode!r}> is none of {', '.join(Mode)}")
    min_rate = _number(element, "min-rate", 0, RATE_MAX)
    weight = _number(element, "weight", 1, WEIGHT_MAX)
    option = Option(
        group=group,
        mode=Mode(mode),
        min_rate=DEFAULT.min_rate if min_rate is None else min_rate,
        max_rate=_number(element, "max-rate", 0, RATE_MAX),
        weight=DEFAULT.weight if weight is None else weight,
    )
    return check(option)


def check(option: Option) -> Option:
    """Return the option; raises MemshareError when a value is none that may be read back."""
    if option.group is not None:
        check_group_name(option.group, "group")
    if option.max_rate is not None and option.min_rate > option.max_rate:
        raise MemshareError(f"min-rate {option.min_rate} is above max-rate {option.max_rate}")
    return option


def to_element(option: Option) -> Element:
    """Return the element; what is as by default is left out."""
    element = etree.Element(TAG, nsmap={PREFIX: NAMESPACE})
    for field, name in zip(Option.__struct_fields__, Option.__struct_encode_fields__, strict=True):
        if (value := getattr(option, field)) != getattr(DEFAULT, field):
            element.set(name, str(value))
    return element


def to_text(option: Option) -> str:
    """Return the element as libvirt wants it for a guest that runs: it adds prefix and namespace itself."""
    element = etree.Element("sharing", dict(to_element(option).attrib))
    return etree.tostring(element, encoding="unicode")


def find(root: Element) -> list[Element]:
    """Return all elements of our namespace at the top of `<metadata>`."""
    return [
        child
        for metadata in root.findall("metadata")
        for child in metadata.iterchildren(tag=etree.Element)
        if etree.QName(child).namespace == NAMESPACE
    ]


def read(root: Element) -> Option | None:
    """Return the domain's option, None when it has none; raises MemshareError when malformed."""
    found = find(root)
    if len(found) > 1:
        raise MemshareError(f"<metadata> has {len(found)} elements of {NAMESPACE}; one is allowed")
    return from_element(found[0]) if found else None


def write(root: Element, option: Option | None) -> None:
    """Put this option in the place of what was there; None takes it away."""
    found = find(root)
    if option is not None and found:
        new = to_element(option)
        new.tail = found[0].tail
        parent = found[0].getparent()
        assert parent is not None
        parent.replace(found[0], new)
        found = found[1:]
    elif option is not None:
        metadata = root.find("metadata")
        if metadata is None:
            metadata = etree.Element("metadata")
            append(root, metadata)
        append(metadata, to_element(option))
    for element in found:
        parent = element.getparent()
        assert parent is not None
        remove(element)
        if is_empty(parent):
            remove(parent)
