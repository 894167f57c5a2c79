# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants: one edit each, of code that cites an invariant, and the tests that must notice.

``citation`` is a piece of the commented line that names the invariant, found once in its file. Each
such line of the files below has at least one mutant; the runner checks that.
"""

import msgspec

WINDOW = "qemu-plugin/client/window.c"
REBUILD = "qemu-plugin/client/rebuild.c"
RELEASE = "qemu-plugin/client/release.c"
REHOME = "qemu-plugin/client/rehome.c"
TWIN = "qemu-plugin/client/twin.c"
UFFD = "qemu-plugin/client/uffd.c"
SEGMENT = "qemu-plugin/store/segment.c"
SHELF = "qemu-plugin/store/shelf.c"
GROUP = "qemu-plugin/store/group.c"
GRANTS = "qemu-plugin/core/grants.c"
FILES = (WINDOW, REBUILD, RELEASE, REHOME, TWIN, UFFD, SEGMENT, SHELF, GROUP, GRANTS)

FAILING = "tests/engine/test_failing_calls.py::test_I1_a_failing_call_costs_no_byte"
SLEEPER = "tests/engine/test_sleepers.py::test_I8_a_sleeper_wakes"


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """``old`` occurs once. ``tests``: a path is for pytest, another name is one of meson's."""

    name: str
    file: str
    citation: str
    old: str
    new: str
    tests: tuple[str, ...]
    #: Why no test can see it; empty: one must.
    explanation: str = ""


MUTANTS = (
    Mutant(
        name="window-has-no-end",
        file=WINDOW,
        citation="it stays within 200 us. I8",
        old="(runs == 0 || now_ns() - opened_ns < CLOSE_AFTER_NS)",
        new="(runs == 0 || now_ns() - opened_ns < 1000ull * CLOSE_AFTER_NS)",
        tests=("tests/engine/test_bounded.py::test_I8_no_run_begins_when_the_time_is_up",),
    ),
    Mutant(
        name="haul-is-endless",
        file=WINDOW,
        citation="it stays within 200 us. I8",
        old="            pages > HAUL_PAGES)",
        new="            pages > MSH_WINDOW_PAGES)",
        tests=(
            "tests/engine/test_bounded.py::test_I8_one_call_moves_no_more_than_there_is_time_for",
        ),
    ),
    Mutant(
        name="budget-is-endless",
        file=WINDOW,
        citation="length. I11",
        old="+ 2 * runs + SPANS_MAX * 2 <=",
        new="* 0 + runs * 0 <=",
        tests=("tests/engine/test_lifecycle.py::test_I11_mappings_stay_within_the_budget",),
    ),
    Mutant(
        name="move-back-gives-up",
        file=WINDOW,
        citation="sleepers need their page. I1",
        old="""                at++;
            else
                sched_yield();""",
        new="""                at++;
            else
                return;""",
        tests=("tests/engine/test_failing_calls.py::test_I1_both_ways_back_fail",),
    ),
    Mutant(
        name="move-back-skips-a-page",
        file=WINDOW,
        citation="sleepers need their page. I1",
        old="""        if (moved_bytes) {
            tries = 0;
        } else if (tries > ROLLBACK_SPINS) {""",
        new="""        if (moved_bytes) {
            tries = 0;
        } else if (tries > 0) {
            at++;
        } else if (tries > ROLLBACK_SPINS) {""",
        tests=(f"{FAILING}[MOVE_IN]",),
    ),
    Mutant(
        name="restore-leaves-a-gap",
        file=WINDOW,
        citation="it would show zeros. I1",
        old="    if (mincore(home, length_bytes, residency) == 0) {\n        move_back",
        new="    if (mincore(home, length_bytes, residency) != 1) {\n        move_back",
        tests=(f"{SLEEPER}[failed_half_done-99]",),
    ),
    Mutant(
        name="restore-shows-zeros",
        file=WINDOW,
        citation="it would show zeros. I1",
        old="    /* DONTUNMAP: no one else's mapping may get between the scratch pages. */",
        new="""    mmap(home, length_bytes, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (mincore(home, length_bytes, residency) == 0) {
        memcpy(home, here, length_bytes / 2);
        memcpy((char *)home + length_bytes / 2, (char *)here + length_bytes / 2, length_bytes / 2);
        return;
    }""",
        tests=(f"{FAILING}[MAP_OVER]", f"{FAILING}[MAP_FIXED_OVER]"),
    ),
    Mutant(
        name="contents-are-not-compared",
        file=WINDOW,
        citation="I2: both sides of the comparison",
        old="slot), slot), MSH_PAGE_BYTES)",
        new="slot), slot), 0)",
        tests=(f"{FAILING}[MOVE_OUT]",),
    ),
    Mutant(
        name="all-but-the-last-byte-is-compared",
        file=WINDOW,
        citation="I2: both sides of the comparison",
        old="slot), slot), MSH_PAGE_BYTES)",
        new="slot), slot), MSH_PAGE_BYTES - 1)",
        tests=("tests/engine/test_bounded.py::test_I2_every_byte_is_compared",),
    ),
    Mutant(
        name="zeros-are-not-compared",
        file=WINDOW,
        citation="I2: both sides of the comparison",
        old="        return msh_page_is_zero(page);\n    MshSlot",
        new="        return true;\n    MshSlot",
        tests=(f"{FAILING}[MOVE_OUT]",),
    ),
    Mutant(
        name="window-does-not-wake",
        file=WINDOW,
        citation="would sleep for ever. I8",
        old="        msh_uffd_wake(&window->uffd, start, length_bytes);",
        new="",
        tests=(f"{SLEEPER}[shared-read]",),
    ),
    Mutant(
        name="window-wakes-its-first-page-only",
        file=WINDOW,
        citation="would sleep for ever. I8",
        old="msh_uffd_wake(&window->uffd, start, length_bytes)",
        new="msh_uffd_wake(&window->uffd, start, length_bytes < MSH_PAGE_BYTES ? length_bytes : MSH_PAGE_BYTES)",
        tests=(f"{SLEEPER}[shared-read]",),
    ),
    Mutant(
        name="window-stays-registered",
        file=WINDOW,
        citation="would sleep for ever. I8",
        old="int result = msh_uffd_unregister(&window->uffd, start, length_bytes);",
        new="int result = 0;",
        tests=("tests/engine/test_lifecycle.py::test_I12_detach_leaves_memory_as_it_was",),
    ),
    Mutant(
        name="stuck-window-goes-on",
        file=WINDOW,
        citation="would sleep for ever. I8",
        old="    if (is_stuck)\n        msh_uffd_close",
        new="    if (is_stuck && window->uffd.fd < 0)\n        msh_uffd_close",
        tests=("unit-engine-loss",),
    ),
    Mutant(
        name="pages-are-mapped-without-a-way-back",
        file=WINDOW,
        citation="or it could not go back. I12",
        old="(view && region && region->twin)",
        new="(view && region)",
        tests=("unit-engine-rebuild",),
    ),
    Mutant(
        name="pages-are-copied-unprotected",
        file=REBUILD,
        citation="Under the write protection: what the runs hold, but zeros. I1",
        old="    int result = protect(rebuild, batch);",
        new="    int result = 0;",
        tests=(f"{SLEEPER}[copied-99]",),
    ),
    Mutant(
        name="twin-stays-registered",
        file=REBUILD,
        citation="would be joined with nothing. I12",
        old="    if (msh_uffd_unregister(&rebuild->uffd, batch->cast, length_bytes) < 0)",
        new="    if (length_bytes == 0)",
        tests=("tests/engine/test_lifecycle.py::test_I12_detach_leaves_memory_as_it_was",),
    ),
    Mutant(
        name="region-has-no-twin",
        file=REBUILD,
        citation="for the way back. I12",
        old="        result = msh_twin_make(region, first_pages);",
        new="        result = -ENOMEM;",
        tests=("tests/engine/test_lifecycle.py::test_I12_detach_leaves_memory_as_it_was",),
    ),
    Mutant(
        name="rebuild-does-not-wake",
        file=REBUILD,
        citation="* on. I8 */",
        old="    msh_uffd_wake(&rebuild->uffd, start, length_bytes);\n",
        new="",
        tests=(f"{SLEEPER}[rebuilt-99]", f"{SLEEPER}[twin-read]"),
    ),
    Mutant(
        name="first-block-does-not-come-back",
        file=TWIN,
        citation="and sleepers need their pages. I1",
        old="    while (mremap(from,",
        new="    if (mremap(from,",
        tests=(f"{FAILING}[MAP_OVER]",),
    ),
    Mutant(
        name="twin-is-as-large-as-the-region",
        file=TWIN,
        citation="as a whole loses its anon_vma. I12",
        old="(uint64_t)region->pages + 1)",
        new="(uint64_t)region->pages)",
        tests=(
            "tests/engine/test_lifecycle.py"
            "::test_I12_what_is_rebuilt_from_end_to_end_is_joined_and_so_is_the_next",
        ),
    ),
    Mutant(
        name="rebuild-leaves-a-gap",
        file=REBUILD,
        citation="there is no way back. I1",
        old="        if (mincore(home, length_bytes, residency) == 0)\n            return",
        new="        if (mincore(home, length_bytes, residency) != 1)\n            return",
        tests=(f"{FAILING}[MAP_OVER]",),
    ),
    Mutant(
        name="failed-rebuild-stays-registered",
        file=REBUILD,
        citation="* on. I8 */",
        old="    for (uint32_t i = 0; i < open; i++)",
        new="    for (uint32_t i = 0; i < open && result == 0; i++)",
        tests=(f"{FAILING}[PROTECT]",),
    ),
    Mutant(
        name="pins-are-not-looked-for-again",
        file=REBUILD,
        citation="to the page that is about to go. I1 */",
        old="    if (pins && !pins->nothing_pinned(pins->opaque))",
        new="    if (pins && !pins->nothing_pinned)",
        tests=("unit-engine-rebuild",),
    ),
    Mutant(
        name="rebuild-stays-registered",
        file=REBUILD,
        citation="* on. I8 */",
        old="bool is_stuck = msh_uffd_unregister(&rebuild->uffd, start, length_bytes) < 0;",
        new="bool is_stuck = false;",
        tests=(f"{FAILING}[COPY_OUT]",),
    ),
    Mutant(
        name="stuck-rebuild-goes-on",
        file=REBUILD,
        citation="* on. I8 */",
        old="    if (is_stuck)\n        msh_rebuild_fini(rebuild);",
        new="    if (is_stuck && rebuild->uffd.fd < 0)\n        msh_rebuild_fini(rebuild);",
        tests=(
            "tests/engine/test_failing_calls.py::test_I8_a_rebuild_that_failed_cannot_be_ended",
        ),
    ),
    Mutant(
        name="pages-are-not-broken",
        file=RELEASE,
        citation="is lost (I1, I12)",
        old="        break_page(msh_region_address(region, page));\n",
        new="        if (page == UINT32_MAX)\n            break_page(msh_region_address(region, page));\n",
        tests=(
            "tests/engine/test_lifecycle.py"
            "::test_I12_without_the_promise_pages_become_private_copies",
        ),
    ),
    Mutant(
        name="pages-are-broken-by-a-plain-write",
        file=RELEASE,
        citation="is lost (I1, I12)",
        old="""    while (!__atomic_compare_exchange_n(byte, &value, value, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED))
        ;""",
        new="    *(volatile uint8_t *)byte = value;",
        tests=("tests/engine/test_races.py::test_I1_no_write_is_lost_to_a_break",),
    ),
    Mutant(
        name="swapped-pages-are-mended",
        file=RELEASE,
        citation="not brought in for this (I9)",
        old="return presence & MSH_PRESENT;",
        new="return presence | MSH_PRESENT;",
        tests=(
            "tests/engine/test_swap.py::test_I9_a_swapped_copy_of_a_shared_page_is_known_as_broken",
        ),
    ),
    Mutant(
        name="slots-are-taken-over-uncompared",
        file=REHOME,
        citation="I2: neither side of the comparison",
        old="new), MSH_PAGE_BYTES) == 0;",
        new="new), 0) == 0;",
        tests=("unit-engine-rehome",),
    ),
    Mutant(
        name="all-but-a-slot's-last-byte-is-compared",
        file=REHOME,
        citation="I2: neither side of the comparison",
        old="new), MSH_PAGE_BYTES) == 0;",
        new="new), MSH_PAGE_BYTES - 1) == 0;",
        tests=("unit-engine-rehome",),
    ),
    Mutant(
        name="rehome-leaves-a-gap",
        file=REHOME,
        citation="may stand there for a moment. I1",
        old="        if (mincore(home, length_bytes, residency) == 0)\n            return",
        new="        if (mincore(home, length_bytes, residency) != 1)\n            return",
        tests=("unit-engine-rehome",),
    ),
    Mutant(
        name="written-pages-take-over-slots",
        file=REHOME,
        citation="may have been: it stays. I1",
        old="presence[end] == (MSH_PRESENT | MSH_PRESENT_FILE))",
        new="(presence[end] & MSH_PRESENT))",
        tests=("unit-engine-rehome",),
    ),
    Mutant(
        name="unsaid-moves-are-lost",
        file=UFFD,
        citation="7.2 clears the error). I1",
        old="if (result == EEXIST || (result && moved_bytes)) {",
        new="if (result && moved_bytes) {",
        tests=(f"{FAILING}[MOVE_OUT]",),
    ),
    Mutant(
        name="pages-left-behind-count-as-moved",
        file=UFFD,
        citation="7.2 clears the error). I1",
        old="while (at < length_bytes && is_empty(pagemap, source + at) &&",
        new="while (at < length_bytes &&",
        tests=("unit-engine-move",),
    ),
    Mutant(
        name="absent-pages-count-as-moved",
        file=UFFD,
        citation="7.2 clears the error). I1",
        old="           !is_empty(pagemap, destination + at))",
        new="           true)",
        tests=("unit-engine-move",),
    ),
    Mutant(
        name="full-segment-can-grow",
        file=SEGMENT,
        citation="/* I4 */",
        old="fcntl(segment->fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL);",
        new="fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SEAL);",
        tests=("unit-segment",),
    ),
    Mutant(
        name="segment-can-be-written-to",
        file=SEGMENT,
        citation="F_SEAL_FUTURE_WRITE) < 0) /* I3 */",
        old="F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE)",
        new="F_ADD_SEALS, F_SEAL_SHRINK)",
        tests=("unit-segment",),
    ),
    Mutant(
        name="segment-can-shrink",
        file=SEGMENT,
        citation="F_SEAL_FUTURE_WRITE) < 0) /* I3 */",
        old="F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE)",
        new="F_ADD_SEALS, F_SEAL_FUTURE_WRITE)",
        tests=("unit-segment",),
    ),
    Mutant(
        name="slot-is-written-while-staged",
        file=SEGMENT,
        citation="I3: written once, before anyone",
        old="    memcpy(segment->staged, page, MSH_PAGE_BYTES);",
        new="""    memcpy(segment->staged, page, MSH_PAGE_BYTES);
    if (segment->used_slots)
        memcpy(segment->mapping + msh_pages_to_bytes(segment->used_slots - 1), page, MSH_PAGE_BYTES);""",
        tests=("unit-segment",),
    ),
    Mutant(
        name="slot-is-written-twice",
        file=SEGMENT,
        citation="I3: written once, before anyone",
        old="memcpy(segment->mapping + msh_pages_to_bytes(segment->used_slots), segment->staged,",
        new="memcpy(segment->mapping, segment->staged,",
        tests=("unit-segment",),
    ),
    Mutant(
        name="number-comes-back-while-it-is-known",
        file=SHELF,
        citation="/* I4 */",
        old="!place->segment && place->shown == 0 && !place->unswept;",
        new="!place->segment && !place->unswept;",
        tests=("unit-group",),
    ),
    Mutant(
        name="number-comes-back-unswept",
        file=SHELF,
        citation="/* I4 */",
        old="!place->segment && place->shown == 0 && !place->unswept;",
        new="!place->segment && place->shown == 0;",
        tests=("unit-group",),
    ),
    Mutant(
        name="groups-have-one-secret",
        file=GROUP,
        citation="/* I5 */",
        old="fill_random(group->secret, sizeof(group->secret));",
        new="0;",
        tests=("unit-group",),
    ),
    Mutant(
        name="who-leaves-keeps-segments",
        file=GROUP,
        citation="/* I6 */",
        old="msh_holder_free(member->holder, retire, group);",
        new="msh_holder_free(member->holder, NULL, NULL);",
        tests=("unit-group",),
    ),
    Mutant(
        name="slot-is-given-out-again",
        file=GRANTS,
        citation="/* I4 */",
        old="msh_slot(segment, into->filled++);",
        new="msh_slot(segment, into->filled); into->filled += into->filled == into->live;",
        tests=("unit-grants",),
    ),
)
