/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The segments of a group, by number; one of them is being filled.
 *
 * A number goes FREE -> KEPT -> RETIRED -> FREE. A kept segment that is not filled any more may be
 * emptying: its grants stay, and nothing new is to be granted in it. From RETIRED on there is no
 * MshSegment, but the number waits until nobody can take an old slot for a new one of the same
 * number (I4): until the last member that was shown it has forgotten it, and the table has been
 * swept of its slots.
 *
 * One thread: the one that owns the group.
 */
#ifndef MSH_SHELF_H
#define MSH_SHELF_H

#include "grants.h"
#include "memshare/units.h"

typedef struct MshShelf MshShelf;

/* grants outlives the shelf and is kept in step: it knows the same segments, filled as far. */
int msh_shelf_new(const char *group, MshGrants *grants, MshShelf **ret_shelf);
MshShelf *msh_shelf_free(MshShelf *shelf);

/* Copies a page aside, as the next slot's bytes; starts a segment when none is being filled. */
int msh_shelf_stage(MshShelf *shelf, const void *page, const void **ret_staged);
/* Makes what was staged a slot. */
int msh_shelf_commit(MshShelf *shelf, MshSlot *ret_slot);

/* Neither free nor retired. Stays false for a number that the table may know old slots of. */
bool msh_shelf_keeps(const MshShelf *shelf, uint32_t segment);
bool msh_shelf_retired(const MshShelf *shelf, uint32_t segment);

/* No such segment. */
#define MSH_SHELF_NONE UINT32_MAX
/* The segment that the next slot goes to, unless it is full; MSH_SHELF_NONE: a new one. */
uint32_t msh_shelf_filling(const MshShelf *shelf);

/* Whether a kept segment that is not being filled is mostly dead: less than half of its slots have
 * grants, but some do. True until it is emptying. */
bool msh_shelf_wants_emptying(const MshShelf *shelf, uint32_t segment);
/* Of the segments that are kept and not emptying, if more than a tenth of their slots is dead: the one of which the largest
 * part is, and that is not being filled. Else MSH_SHELF_NONE. O(segments). */
uint32_t msh_shelf_deadest(const MshShelf *shelf);
/* Whether so much of the store, more than a quarter, is in segments being emptied that no further one should be: until
 * all that share a page have moved it is there twice, and where contents die soon, moving more than that makes dead slots
 * faster than it gives them back. now counts grants that ended: a segment where none did while as many as there are live
 * slots ended elsewhere waits for somebody who is stopped, and does not count. O(segments). */
bool msh_shelf_is_crowded(const MshShelf *shelf, uint64_t now);
/* A grant ended there. */
void msh_shelf_note_release(MshShelf *shelf, uint32_t segment, uint64_t now);
/* From now on it is emptying, until it is retired. */
void msh_shelf_empty(MshShelf *shelf, uint32_t segment, uint64_t now);
bool msh_shelf_is_emptying(const MshShelf *shelf, uint32_t segment);
/* Numbers in use are below. */
uint32_t msh_shelf_numbers_end(const MshShelf *shelf);

/* Closes and unmaps a kept segment, which has no grants. */
void msh_shelf_retire(MshShelf *shelf, uint32_t segment);

/* Slots the table may still know though their segment was retired. One sweep for many segments: a
 * sweep walks the whole table, and a member can make segments retire at will. */
bool msh_shelf_wants_sweep(const MshShelf *shelf, uint64_t table_entries);
void msh_shelf_swept(MshShelf *shelf);

/* Reads a slot's bytes. -ENOENT not kept · -EINVAL was never filled · -EIO and others */
int msh_shelf_read(const MshShelf *shelf, MshSlot slot, void *ret_page);
/* A new read-only descriptor. -ENOENT not kept */
int msh_shelf_open(const MshShelf *shelf, uint32_t segment);
/* One more, or one less, member knows the number. */
void msh_shelf_shown(MshShelf *shelf, uint32_t segment);
void msh_shelf_forgotten(MshShelf *shelf, uint32_t segment);
uint32_t msh_shelf_knowers(const MshShelf *shelf, uint32_t segment);

/* Whether it is in step with the grants. */
void msh_shelf_audit(const MshShelf *shelf, MshAudit *audit);

#endif
