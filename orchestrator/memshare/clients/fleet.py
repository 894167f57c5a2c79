# SPDX-License-Identifier: GPL-2.0-or-later
"""All guests of a host, wherever they are found: folders of QMP sockets, and libvirts."""

import asyncio
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from memshare import paths
from memshare.clients.qmp import read_domains
from memshare.model import Domain

#: Sockets of a libvirt of this host: of the one daemon, and of the one for QEMU alone.
LIBVIRT_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """Where to look for guests. daemon is the socket of one that watches all of them, if it runs.

    group is that of libvirt's guests that name none.
    """

    qmp_dirs: tuple[Path, ...]
    uris: tuple[str, ...]
    daemon: Path | None = None
    group: str = "default"

    def __str__(self) -> str:
        """Return them as a person would list them."""
        return ", ".join([*self.uris, *map(str, self.qmp_dirs)])


def sources(qmp_dirs: Iterable[Path] = (), uris: Iterable[str] = ()) -> Sources:
    """Return where to look: where one is told to, or the usual folder and this host's libvirt."""
    folders, names = tuple(dict.fromkeys(qmp_dirs)), tuple(dict.fromkeys(uris))
    if not folders:
        names = names or default_uris()
        # Without libvirt the folder has to be there.
        folders = (paths.QMP_DIR,) if paths.QMP_DIR.exists() or not names else ()
    return Sources(qmp_dirs=folders, uris=names)


def default_uris() -> tuple[str, ...]:
    """Return this host's libvirt, if it listens and its Python binding is installed."""
    listens = any(path.exists() for path in LIBVIRT_SOCKETS)
    return (paths.LIBVIRT_URI,) if listens and find_spec("libvirt") else ()


async def read_fleet(where: Sources) -> list[Domain]:
    """Return the guests of all sources, in order of names, each once."""
    async with asyncio.TaskGroup() as group:
        managed = [group.create_task(_read_libvirt(uri, where.group)) for uri in where.uris]
        bare = [group.create_task(read_domains(folder)) for folder in where.qmp_dirs]
    found = each_once(
        [domain for task in managed for domain in task.result()],
        [domain for task in bare for domain in task.result()],
    )
    return sorted(found, key=lambda domain: (domain.name, domain.source))


async def _read_libvirt(uri: str, host_group: str) -> list[Domain]:
    from memshare.clients.libvirt import open_hypervisor  # it need not be installed

    async with open_hypervisor(uri) as hypervisor:
        return await hypervisor.domains(host_group)


def is_same(one: Domain, other: Domain) -> bool:
    """Whether two sources tell of one guest: by UUID, or by name where a QEMU on a bare socket was given none."""
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    return one.name == other.name and bool(one.uuid or other.uuid)


def each_once(managed: Sequence[Domain], bare: Sequence[Domain]) -> list[Domain]:
    """Return libvirt's guests, and those of folders that are not one of them.

    libvirt knows more about a guest, but its own monitor may answer where libvirt did not.
    """
    kept, others = list(managed), []
    for domain in bare:
        index = next((i for i, known in enumerate(managed) if is_same(known, domain)), None)
        if index is None:
            others.append(domain)
        elif kept[index].stats is None and domain.stats is not None:
            kept[index] = msgspec.structs.replace(
                kept[index], stats=domain.stats, problem="", answered=True
            )
    return kept + others
