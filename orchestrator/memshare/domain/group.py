# SPDX-License-Identifier: GPL-2.0-or-later
"""The group of a guest: what its owner says, else its OpenStack project, else the host's default."""

from lxml import etree

from memshare.domain.document import Element
from memshare.domain.option import check_group_name
from memshare.errors import MemshareError
from memshare.model import Option

NOVA = "http://openstack.org/xmlns/libvirt/nova/"  # followed by a version
HINT = "say memshare attach --group NAME"


def nova_project(root: Element) -> str | None:
    """Return the project's id from nova's metadata, None for a domain that nova has not made.

    Raises MemshareError when nova has made it and no project can be read: to fall back to the host's
    default would put one tenant's guest among others.
    """
    instances = [
        child
        for child in root.iterfind("metadata/{*}instance")
        if (etree.QName(child).namespace or "").startswith(NOVA)
    ]
    if not instances:
        return None
    projects = {
        project.get("uuid", "")
        for instance in instances
        for project in instance.iterfind("{*}owner/{*}project")
    }
    if len(projects) != 1:
        raise MemshareError(
            f"<nova:instance> names {len(projects) or 'no'} projects in <nova:owner>", HINT
        )
    try:
        return check_group_name(projects.pop().lower(), "<nova:project> uuid")
    except MemshareError as error:
        raise MemshareError(str(error), HINT) from error


def group_of(root: Element, option: Option, host_group: str) -> str:
    """Return the group that a domain with this option belongs to."""
    return option.group or nova_project(root) or host_group
