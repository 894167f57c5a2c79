# SPDX-License-Identifier: GPL-2.0-or-later
"""What guests and sharing cost, by the kernel's own accounting: PSS, page tables, slab, stacks."""

from collections.abc import Sequence
from typing import NamedTuple

from memshare.bench.oracle import GuestMemory, Store
from memshare.clients import procfs

# Caches that grow with the number of mappings and userfaultfds. A cache that the kernel merged with
# another of its size is not listed by its name and counts as none. All of Slab would count every file
# that some other program looked at meanwhile.
SLAB_CACHES = (
    "vm_area_struct",
    "anon_vma",
    "anon_vma_chain",
    "maple_node",
    "vma_lock",
    "userfaultfd_ctx_cache",
)
KERNEL_STACK_BYTES = 16 << 10  # of one thread, on x86-64


class Cost(NamedTuple):
    """Bytes at one moment. Guests' sums over all guests."""

    ram_pss_bytes: int  # guests' RAM; pages of the store that they map by their share
    views_pss_bytes: int  # the store where it is mapped beside guests' RAM, by the broker too
    guest_heap_bytes: int  # anonymous memory of QEMU beside RAM and translated code
    guest_tables_bytes: int  # page tables
    slab_bytes: int  # of the host, live objects of SLAB_CACHES
    broker_bytes: int  # the broker without the store: PSS, page tables, stacks


def read_cost(guests: Sequence[GuestMemory], broker_pid: int, store: Store) -> Cost:
    """Add up what the kernel says now."""
    ram = views = heap = tables = 0
    for guest in guests:
        for mapping, figures in procfs.smaps(guest.pid):
            if guest.contains(mapping):
                ram += figures["Pss"]
            elif mapping.file in store.files:
                views += figures["Pss"]
            elif not mapping.inode and "x" not in mapping.permissions:
                heap += figures.get("Pss", 0)
        tables += procfs.status(guest.pid)["VmPTE"]
    broker_views = sum(
        figures["Pss"]
        for mapping, figures in procfs.smaps(broker_pid)
        if mapping.file in store.files
    )
    broker = (
        procfs.smaps_rollup(broker_pid)["Pss"]
        - broker_views
        + procfs.status(broker_pid)["VmPTE"]
        + procfs.threads(broker_pid) * KERNEL_STACK_BYTES
    )
    return Cost(
        ram_pss_bytes=ram,
        views_pss_bytes=views + broker_views,
        guest_heap_bytes=heap,
        guest_tables_bytes=tables,
        slab_bytes=procfs.slab_bytes(SLAB_CACHES),
        broker_bytes=broker,
    )


def overhead_bytes(before: Cost, now: Cost, engine_tables_bytes: int, guests: int) -> int:
    """What sharing costs now, against before it was switched on. Pure.

    before is taken with the plugin loaded and sharing off, so its tables are in it already:
    engine_tables_bytes adds them as the engines stated them then. The broker counts in full, and so do
    the kernel stacks of the two threads that an engine has. Whatever else made QEMU's heap or page
    tables grow meanwhile is counted against sharing as well.
    """
    return (
        engine_tables_bytes
        + guests * 2 * KERNEL_STACK_BYTES
        + max(0, now.guest_heap_bytes - before.guest_heap_bytes)
        + max(0, now.guest_tables_bytes - before.guest_tables_bytes)
        + max(0, now.slab_bytes - before.slab_bytes)
        + now.broker_bytes
    )


def memory_used_bytes(now: Cost, store: Store) -> int:
    """Memory behind all guests' RAM by PSS: theirs, and the rest of the store. Pure.

    A page of the store is split among all its mappings, those of the broker and of the engines' views
    of the store too, so these are added; pages that nobody maps are in no PSS. The sum is that of
    distinct frames, reckoned another way.
    """
    unmapped = store.allocated_bytes - store.mapped_bytes
    return now.ram_pss_bytes + now.views_pss_bytes + unmapped
