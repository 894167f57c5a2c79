/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The segments of the store as this process sees them. A view holds a segment's read-only descriptor,
 * a PROT_READ mapping to compare against, and a template: a private mapping of the whole segment that
 * was never touched, from which store mappings are cut. Segments have local numbers here, so that a
 * slot keeps its meaning when the broker restarts and numbers its segments anew.
 *
 * Threads: opened by the scan thread; closed under both locks, when nothing here maps it any more.
 */
#ifndef MSH_VIEWS_H
#define MSH_VIEWS_H

#include <stdatomic.h>

#include "memshare/error.h"
#include "memshare/units.h"

enum { MSH_VIEWS_MAX = 4096 }; /* 256 GiB of store */

typedef struct MshView {
    uint32_t segment;  /* the number it has at its source */
    uint32_t source;   /* which store: counts connections to a broker */
    bool retired;      /* its source will not match it again */
    _Atomic bool is_leaving;   /* what it maps shall move: its source is gone, or empties it */
    uint64_t leaving_ns;       /* when that was seen to take more than one walk; 0: not yet. Scan thread */
    bool dont_fork, dont_dump; /* of the template */
    int fd;              /* -1: it has its full size */
    uint64_t size_bytes; /* of the file, when last looked: it only grows */
    const uint8_t *bytes;
    uint8_t *template;
    _Atomic uint32_t mapped_pages; /* SHARED and BROKEN pages here that are mapped from it */
} MshView;

typedef struct MshViews {
    MshView *view[MSH_VIEWS_MAX]; /* NULL: free */
    uint32_t source;              /* of the views opened from now on */
} MshViews;

/* Takes the descriptor over in every case. *ret_local is the local number.
 * -EBADF: it is not a read-only, sealed segment · -ENOSPC: too many views · -errno */
int msh_views_open(MshViews *views, uint32_t segment, int segment_fd, uint32_t *ret_local);

/* The local number of a segment of the present source, or -ENOENT. */
int msh_views_find(const MshViews *views, uint32_t segment, uint32_t *ret_local);

/* Unmaps view local. Nothing here may map it. */
void msh_views_close(MshViews *views, uint32_t local);
void msh_views_close_all(MshViews *views);

/* From now on a new source numbers the segments; those of the old one get no new match, and leave. */
void msh_views_new_source(MshViews *views);

/* The same of view local alone: its source empties it. False: it leaves already. */
bool msh_views_leave(MshViews *views, uint32_t local);

/* Nobody has a grant in it. True: it leaves only now, with BROKEN pages that hold its memory. */
bool msh_views_retire(MshViews *views, uint32_t local);

static inline MshView *msh_views_of(const MshViews *views, MshSlot slot)
{
    uint32_t local = msh_slot_segment(slot);
    return local < MSH_VIEWS_MAX ? views->view[local] : NULL;
}

/* Pages here that are mapped from views that leave; and from those of them whose source is gone. */
uint64_t msh_views_leaving_pages(const MshViews *views);
uint64_t msh_views_lost_pages(const MshViews *views);

/* Whether there still is a view whose source is gone. */
bool msh_views_has_lost(const MshViews *views);

/* The slot's bytes, to read only. */
static inline const uint8_t *msh_view_page(const MshView *view, MshSlot slot)
{
    return view->bytes + msh_slot_offset_bytes(slot);
}

/* Whether the segment has grown to hold that slot: mapping past its end would kill a reader. Scan
 * thread. */
bool msh_view_holds(MshView *view, MshSlot slot);

/* Takes over the flags of the memory that mappings will replace: the kernel copies them from the
 * template. Window lock. */
void msh_view_set_flags(MshView *view, bool dont_fork, bool dont_dump);

#endif
