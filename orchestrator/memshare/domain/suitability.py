# SPDX-License-Identifier: GPL-2.0-or-later
"""What in a domain's XML keeps it from sharing, known before it starts.

The plugin looks again at the running guest and refuses the same, and more that only it can see; this
list exists so that `attach` names the element at fault instead of a guest that never shares.
"""

from typing import NamedTuple

from memshare.domain.document import Element


class Obstacle(NamedTuple):
    """An element (in the words of `Element.iterfind`), how people write it, and what it means."""

    path: str
    shown: str
    meaning: str


FILE_BACKED = "its RAM is backed by a file"
PINNED = "it writes to the guest's memory behind QEMU's back"
SHARED = "its RAM is shared with another process"

OBSTACLES = (
    Obstacle("memoryBacking/nosharepages", "<nosharepages/>", "its owner says no to shared pages"),
    Obstacle("memoryBacking/hugepages", "<hugepages/>", "its RAM is on hugetlbfs"),
    Obstacle("memoryBacking/locked", "<locked/>", "its RAM is locked"),
    Obstacle("memoryBacking/access[@mode='shared']", "<access mode='shared'/>", SHARED),
    Obstacle("memoryBacking/source[@type='file']", "<source type='file'/>", FILE_BACKED),
    Obstacle("memoryBacking/source[@type='memfd']", "<source type='memfd'/>", FILE_BACKED),
    Obstacle("cpu/numa/cell[@memAccess='shared']", "<cell memAccess='shared'/>", SHARED),
    Obstacle("launchSecurity", "<launchSecurity>", "its memory is encrypted or private"),
    Obstacle("devices/hostdev[@type='pci']", "<hostdev type='pci'>", PINNED),
    Obstacle("devices/hostdev[@type='mdev']", "<hostdev type='mdev'>", PINNED),
    Obstacle("devices/hostdev[@type='scsi_host']", "<hostdev type='scsi_host'>", PINNED),
    Obstacle("devices/interface[@type='hostdev']", "<interface type='hostdev'>", PINNED),
    Obstacle("devices/interface[@type='vdpa']", "<interface type='vdpa'>", PINNED),
    Obstacle("devices/interface[@type='vhostuser']", "<interface type='vhostuser'>", SHARED),
    Obstacle("devices/disk[@type='nvme']", "<disk type='nvme'>", PINNED),
    Obstacle("devices/disk[@type='vhostvdpa']", "<disk type='vhostvdpa'>", PINNED),
    Obstacle("devices/disk[@type='vhostuser']", "<disk type='vhostuser'>", SHARED),
    Obstacle("devices/filesystem/driver[@type='virtiofs']", "<driver type='virtiofs'/>", SHARED),
)


def obstacle(root: Element) -> str | None:
    """Return why this domain cannot share, naming the element at fault; None when it may."""
    kind = root.get("type")
    if kind not in ("kvm", "qemu"):
        return f"<domain type='{kind}'>: no guest of QEMU"
    for found in OBSTACLES:
        if root.find(found.path) is not None:
            *above, _ = found.path.split("[")[0].split("/")
            inside = f" in <{above[-1]}>" if above else ""
            return f"{found.shown}{inside}: {found.meaning}"
    return None
