# SPDX-License-Identifier: GPL-2.0-or-later
"""Announcing guests of libvirt to the broker: which process may connect to which group.

All QEMUs of libvirt have one uid. What tells them apart is the cgroup that libvirt gives to each and that no
unprivileged process can leave. It is found by the process id that libvirtd wrote down, which only root can
write; a QEMU's command line would not do, for an escaped QEMU writes there what it likes.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from memshare.clients.broker import ask
from memshare.clients.procfs import PROC
from memshare.errors import MemshareError, UnreachableError

#: Where libvirtd keeps NAME.pid of the guests that run.
LIBVIRT_RUN = Path("/run/libvirt/qemu")


class _Group(msgspec.Struct):
    """A group that the broker has."""

    name: str


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A guest, the group it belongs to, and its cgroup (v2), as a path from the root of all."""

    uuid: str
    group: str
    cgroup: str


class _Known(msgspec.Struct):
    """What the broker knows, of its answer to `status`."""

    groups: list[_Group]
    allowed: list[Announcement]


def guests_own(cgroup: str, domain_id: int) -> str:
    """Return that part of a QEMU's cgroup which is this guest's own; raises MemshareError.

    With systemd `machine-qemu\\x2dID\\x2dNAME.scope`, without it `qemu-ID-NAME.libvirt-qemu`; libvirt puts
    threads into children of it. The id is never given twice while libvirtd knows of a guest, so that a
    process id which became another guest's meanwhile is noticed. Anything else may hold other processes too.
    """
    parts = cgroup.split("/")
    for length in range(len(parts), 0, -1):
        name = parts[length - 1].replace("\\x2d", "-")
        scope = name.startswith(f"machine-qemu-{domain_id}-") and name.endswith(".scope")
        plain = name.startswith(f"qemu-{domain_id}-") and name.endswith(".libvirt-qemu")
        if scope or plain:
            return "/".join(parts[:length])
    raise MemshareError(
        f"cgroup {cgroup} is not the guest's own",
        "does libvirt use cgroups v2 here? See cgroup_controllers in /etc/libvirt/qemu.conf",
    )


def find_pid(name: str, run: Path = LIBVIRT_RUN) -> int | None:
    """Return the process of a guest that runs on this host, None when libvirtd has written none down."""
    try:
        return int((run / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None


def find_cgroup(name: str, domain_id: int, run: Path = LIBVIRT_RUN) -> str:
    """Return the cgroup of a guest that runs on this host; raises MemshareError when there is none."""
    try:
        lines = (PROC / str(find_pid(name, run)) / "cgroup").read_text().splitlines()
    except OSError as error:
        raise MemshareError(f"{name}: its process is not to be found: {error}") from error
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::/")]
    if not paths:
        raise MemshareError(f"{name}: has no cgroup v2", "memshare needs the unified hierarchy")
    try:
        return guests_own(paths[0], domain_id)
    except MemshareError as error:
        raise MemshareError(f"{name}: {error}", error.hint) from error


async def _known(control: Path) -> _Known:
    answer = await ask(control, "status")
    try:
        return msgspec.convert(answer, _Known)
    except msgspec.ValidationError as error:
        raise MemshareError(f"{control}: status: {error}") from error


async def announce(control: Path, guest: Announcement) -> None:
    """Have the broker admit this guest to this group and to no other; makes the group if need be."""
    if guest.group not in {group.name for group in (await _known(control)).groups}:
        await ask(control, "group-add", group=guest.group)
    await ask(control, "allow", **msgspec.to_builtins(guest))


async def forget(control: Path, uuid: str) -> None:
    """Have the broker admit this guest no more. One that it does not know is fine."""
    if uuid in {told.uuid for told in (await _known(control)).allowed}:
        await ask(control, "forget", uuid=uuid)


async def reconcile(
    control: Path, guests: Iterable[Announcement], *, forgets: bool = True
) -> list[MemshareError]:
    """Have the broker admit these guests and none else: after a start of either side.

    forgets False: others too, which are not known yet. What it refuses for one guest does not keep the others out,
    and is returned. UnreachableError.
    """
    wanted = {guest.uuid: guest for guest in guests}
    problems = []
    known = {told.uuid: told for told in (await _known(control)).allowed}
    for uuid in known.keys() - wanted.keys() if forgets else ():
        await forget(control, uuid)
    for uuid, guest in wanted.items():
        if known.get(uuid) != guest:
            try:
                await announce(control, guest)
            except UnreachableError:
                raise
            except MemshareError as error:
                problems.append(error)
    return problems
