# SPDX-License-Identifier: GPL-2.0-or-later
"""The C core as hypothesis sees it: libmemshare-core-test.so, which exports every function.

The declarations repeat the headers of core/ and store/; a one-member struct is passed like its member.
"""

import os
from pathlib import Path
from typing import Any

import cffi

PAGE_BYTES = 4096
SEGMENT_SLOTS = 16384

ffi = cffi.FFI()
ffi.cdef("""
    typedef struct { uint32_t number; } MshFrame;
    typedef struct { uint32_t number; } MshSlot;
    typedef struct { char text[256]; } MshError;

    typedef struct {
        uint64_t slots, grants, entries, hashed, problems;
        char texts[16][192];
    } MshAudit;

    typedef struct MshTable MshTable;
    typedef struct { uint16_t member; MshFrame frame; } MshSighter;
    typedef struct { MshSighter first; MshSlot slot; } MshFound;
    int msh_table_new(uint64_t limit_entries, uint64_t seed, MshTable **ret_table);
    MshTable *msh_table_free(MshTable *table);
    int msh_table_sight(MshTable *, uint64_t hash, MshSighter, MshFound *);
    int msh_table_find(const MshTable *, uint64_t hash, MshFound *);
    int msh_table_set_sighting(MshTable *, uint64_t hash, MshSighter);
    int msh_table_set_slot(MshTable *, uint64_t hash, MshSlot);
    void msh_table_drop_slots(MshTable *, bool (*gone)(const void *, uint32_t), const void *);
    void msh_table_drop_member(MshTable *, uint16_t member);
    uint64_t msh_table_entries(const MshTable *);

    typedef struct MshGrants MshGrants;
    typedef struct MshHolder MshHolder;
    typedef struct { uint64_t segments, slots_live, slots_dead, grants; } MshGrantsStats;
    int msh_grants_new(MshGrants **);
    MshGrants *msh_grants_free(MshGrants *);
    int msh_grants_add_segment(MshGrants *, uint32_t segment);
    int msh_grants_remove_segment(MshGrants *, uint32_t segment);
    int msh_grants_fill(MshGrants *, uint32_t segment, MshSlot *);
    void msh_grants_stats(const MshGrants *, MshGrantsStats *);
    uint32_t msh_grants_filled(const MshGrants *, uint32_t segment);
    uint32_t msh_grants_live(const MshGrants *, uint32_t segment);
    bool msh_grants_slot_is_live(const MshGrants *, MshSlot);
    int msh_holder_new(MshGrants *, MshHolder **);
    MshHolder *msh_holder_free(MshHolder *, void (*emptied)(void *, uint32_t), void *);
    int msh_holder_take(MshHolder *, MshSlot);
    int msh_holder_give_back(MshHolder *, MshSlot);
    uint64_t msh_holder_grants(const MshHolder *);
    uint32_t msh_holder_grants_in(const MshHolder *, uint32_t segment);
    uint64_t msh_holder_cost_bytes(const MshHolder *);

    typedef struct MshGroup MshGroup;
    typedef struct MshMember MshMember;
    typedef struct { uint64_t store_bytes, table_entries, member_slots; } MshGroupLimits;
    typedef struct {
        bool (*hint)(void *, MshMember *, MshFrame, MshSlot);
        void (*retired)(void *, MshMember *, uint32_t segment);
        void (*emptying)(void *, MshMember *, uint32_t segment);
        void *opaque;
    } MshGroupEvents;
    typedef struct {
        uint64_t members, segments, store_bytes, slots_live, slots_dead, grants;
        uint64_t table_entries, table_bytes;
        uint64_t sightings, provides, rejected_provides, matches, releases, bad_releases;
        uint64_t refused_full;
    } MshGroupStats;
    int msh_group_new(const char *, const MshGroupLimits *, const MshGroupEvents *, MshGroup **,
                      MshError *);
    MshGroup *msh_group_free(MshGroup *);
    const uint8_t *msh_group_secret(const MshGroup *);
    void msh_group_stats(const MshGroup *, MshGroupStats *);
    int msh_group_audit(const MshGroup *, MshAudit *);
    int msh_group_join(MshGroup *, void *opaque, MshMember **);
    MshMember *msh_group_leave(MshMember *);
    int msh_group_sight(MshMember *, uint64_t hash, MshFrame, MshSlot *);
    int msh_group_provide(MshMember *, uint64_t hash, MshFrame, const void *page, MshSlot *);
    int msh_group_release(MshMember *, MshSlot);
    uint64_t msh_member_cost_bytes(const MshMember *);
    uint64_t msh_member_grants(const MshMember *);
    bool msh_member_was_shown(const MshMember *, uint32_t segment);
    int msh_member_show(MshMember *, uint32_t segment);
    int msh_member_forgot(MshMember *, uint32_t segment);

    uint64_t msh_fingerprint(const uint8_t *secret, const void *page);
""")


def _library() -> Path:
    root = Path(__file__).resolve().parents[2]
    build = Path(os.environ.get("MEMSHARE_BUILD", root / "build"))
    return build / "tests" / "property" / "libmemshare-core-test.so"


lib: Any = ffi.dlopen(str(_library()))
