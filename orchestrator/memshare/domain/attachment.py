# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain's attachment to memshare: its option and the plugin's argument, always both.

Each function takes a domain's XML and returns it changed, and does nothing the second time.
"""

from collections.abc import Callable

import msgspec
from msgspec import UNSET, UnsetType

from memshare.domain import option as options
from memshare.domain import plugin as plugins
from memshare.domain.document import parse, text_of
from memshare.domain.group import group_of
from memshare.domain.plugin import Plugin
from memshare.domain.suitability import obstacle
from memshare.errors import HostError, MemshareError
from memshare.model import WITHOUT_PLUGIN, Mode, Option

NEXT_START = "from the next start on: use --config"


class NotAttachedError(MemshareError):
    """The domain has nothing of memshare that could be changed."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed in an option; what is UNSET stays as it is."""

    group: str | UnsetType | None = UNSET
    mode: Mode | UnsetType = UNSET
    min_rate: int | UnsetType = UNSET
    max_rate: int | UnsetType | None = UNSET
    weight: int | UnsetType = UNSET

    def applied(self, option: Option) -> Option:
        """Return the option with these changes; raises MemshareError when they do not go together."""
        changes = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not UNSET
        }
        return options.check(msgspec.structs.replace(option, **changes))


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain's XML says of sharing.

    option is None for a domain that has none, argument for one that does not load the plugin. group is where an
    attached domain belongs, owner_group where it would whether it is or not. `problem`
    says why the domain does not share, if that can be read from its XML; empty when it may.
    """

    option: Option | None = None
    group: str | None = None
    owner_group: str | None = None
    argument: str | None = None
    problem: str = ""


def attach(xml: str, wish: Wish, plugin: Plugin, host_group: str) -> str:
    """Return the domain with option and plugin. HostError: the element that makes it impossible."""
    root = parse(xml)
    if why := obstacle(root):
        raise HostError(f"cannot share: {why}")
    option = wish.applied(options.read(root) or options.DEFAULT)
    options.write(root, option)
    group = group_of(root, option, host_group)
    plugins.write(root, plugin.argument(option, group, plugins.argument_of(root)))
    return text_of(root)


def amend(xml: str, wish: Wish, place: Callable[[str | None], tuple[Plugin, str]]) -> str:
    """As `attach`, for a domain that is attached already; raises NotAttachedError.

    place returns plugin and host's group for one that has this argument so far.
    """
    root = parse(xml)
    argument = plugins.argument_of(root)
    if options.read(root) is None and argument is None:
        raise NotAttachedError("is not attached", "memshare attach DOMAIN")
    return attach(xml, wish, *place(argument))


def attach_live(xml: str, wish: Wish, host_group: str | None) -> str:
    """As `attach`, for a domain as it runs: the option only, for the plugin is there or comes too late.

    host_group None: whichever it was started in. HostError: what is wished can be had from the next start on only.
    """
    root = parse(xml)
    argument = plugins.argument_of(root)
    if argument is None:
        raise HostError("was started without memshare", NEXT_START)
    option = wish.applied(options.read(root) or options.DEFAULT)
    started_in = plugins.group_in(argument)
    group = group_of(root, option, host_group or started_in)
    if group != started_in:
        raise HostError(f"was started in group {started_in}, not {group}", NEXT_START)
    options.write(root, option)
    return text_of(root)


def amend_live(xml: str, wish: Wish, host_group: str | None) -> str:
    """As `attach_live`, for a domain that has an option; raises NotAttachedError."""
    root = parse(xml)
    if options.read(root) is None and plugins.argument_of(root) is not None:
        raise NotAttachedError("is not attached", "memshare attach --live DOMAIN")
    return attach_live(xml, wish, host_group)


def detach(xml: str) -> str:
    """Return the domain without option and plugin, also where they are malformed."""
    root = parse(xml)
    options.write(root, None)
    plugins.write(root, None)
    return text_of(root)


def detach_live(xml: str) -> str:
    """Return the domain as it runs without its option; the plugin stays until it ends."""
    root = parse(xml)
    options.write(root, None)
    return text_of(root)


def read(xml: str, host_group: str) -> Attachment:
    """Return what the domain says of sharing. Never raises for a domain: what is wrong is `problem`."""
    try:
        root = parse(xml)
    except MemshareError as error:
        return Attachment(problem=str(error))
    argument = plugins.argument_of(root)
    try:
        option = options.read(root)
        owner_group = group_of(root, option or options.DEFAULT, host_group)
    except MemshareError as error:
        return Attachment(argument=argument, problem=str(error))
    if option is None:
        problem = "is not attached"
    elif argument is None:
        problem = WITHOUT_PLUGIN
    else:
        problem = obstacle(root) or ""
    return Attachment(
        option=option,
        group=None if option is None else owner_group,
        owner_group=owner_group,
        argument=argument,
        problem=problem,
    )
