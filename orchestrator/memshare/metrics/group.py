# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of groups: what each saves and costs, and its store and table in the broker."""

from collections.abc import Callable, Mapping

from memshare.daemon.view import View
from memshare.metrics.metric import Kind, Metric, Read, Samples, after_a_look
from memshare.model import Group
from memshare.policy.snapshot import PAGE_BYTES

GROUP = ("group",)


def _broker(value: Callable[[Group], float]) -> Read:
    """Read a figure of each group from the broker's word."""

    @after_a_look
    def read(view: View) -> Samples:
        for group in view.broker.groups if view.broker else ():
            yield (group.name,), value(group)

    return read


def _sums(values: Callable[[View], Mapping[str, float]]) -> Read:
    @after_a_look
    def read(view: View) -> Samples:
        for group, figure in values(view).items():
            yield (group,), figure

    return read


@after_a_look
def _store(view: View) -> Samples:
    for group in view.broker.groups if view.broker else ():
        used_bytes, dead_bytes = group.slots_live * PAGE_BYTES, group.slots_dead * PAGE_BYTES
        yield (group.name, "used"), used_bytes
        yield (group.name, "dead"), dead_bytes
        yield (group.name, "free"), max(0, group.store_bytes - used_bytes - dead_bytes)


def _metadata(view: View) -> dict[str, int]:
    costs: dict[str, int] = {}
    for guest in view.snapshot.guests:
        name = guest.stats.group
        costs[name] = costs.get(name, 0) + guest.stats.overhead_bytes
    for group in view.broker.groups if view.broker else ():
        costs[group.name] = costs.get(group.name, 0) + group.table_bytes
    return costs


def _saved(view: View) -> dict[str, int]:
    saved = {group: -cost_bytes for group, cost_bytes in _metadata(view).items()}
    for guest in view.snapshot.guests:
        saved[guest.stats.group] += guest.stats.saved_content_bytes + guest.stats.saved_zero_bytes
    return saved


METRICS = (
    Metric(
        "memshare_saved_bytes",
        Kind.GAUGE,
        GROUP,
        _sums(_saved),
        "What sharing saves, zeros and contents, net of the store and of all that it costs; negative when it costs more. "
        "memshare_domain_saved_bytes tells the two apart.",
        "`general_profit`",
    ),
    Metric(
        "memshare_metadata_bytes",
        Kind.GAUGE,
        GROUP,
        _sums(_metadata),
        "What that costs: tables, page tables and mappings of the guests' engines, the broker's table.",
        "`ksm_rmap_items` in `/proc/PID/ksm_stat`, each of 64 bytes",
    ),
    Metric(
        "memshare_store_bytes",
        Kind.GAUGE,
        ("group", "state"),
        _store,
        "The store: slots `used` by guests, `dead` ones that are freed with their segment, and `free` ones made ready.",
        "`pages_shared`",
    ),
    Metric(
        "memshare_store_segments",
        Kind.GAUGE,
        GROUP,
        _broker(lambda group: group.segments),
        "Segments of the store that are not retired.",
    ),
    Metric(
        "memshare_store_grants",
        Kind.GAUGE,
        GROUP,
        _broker(lambda group: group.grants),
        "Permissions to map a slot that guests hold: pages shared, and those about to be.",
        "`pages_shared` + `pages_sharing`",
    ),
    Metric(
        "memshare_group_members",
        Kind.GAUGE,
        GROUP,
        _broker(lambda group: group.members),
        "Guests that are connected to the broker.",
    ),
    Metric(
        "memshare_table_entries",
        Kind.GAUGE,
        GROUP,
        _broker(lambda group: group.table_entries),
        "Hashes and slots in the broker's table.",
        "`pages_unshared`",
    ),
    Metric(
        "memshare_table_sightings_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.sightings),
        "Hashes of pages that guests told the broker.",
    ),
    Metric(
        "memshare_table_matches_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.matches),
        "Slots that it granted in answer, or when a page was sent.",
    ),
    Metric(
        "memshare_store_provides_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.provides),
        "Pages that guests sent for the store, at the second sighting.",
    ),
    Metric(
        "memshare_store_rejected_provides_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.rejected_provides),
        "Pages that were sent and not wanted, or had other contents than announced.",
    ),
    Metric(
        "memshare_store_releases_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.releases),
        "Grants that guests gave back.",
    ),
    Metric(
        "memshare_store_bad_releases_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.bad_releases),
        "Grants given back by who did not hold them: a guest that is broken, or hostile.",
    ),
    Metric(
        "memshare_store_refused_full_total",
        Kind.COUNTER,
        GROUP,
        _broker(lambda group: group.refused_full),
        "Pages that were not shared because the guest, the store or the table was at its limit.",
        "`max_page_sharing` reached",
    ),
)
