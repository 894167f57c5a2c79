/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One end of the shared-memory rings of protocol.h. The memory is shared with a process that may
 * write anything to it at any time: an end keeps its own counts privately, copies each entry once,
 * and answers -EPROTO when the other side's count cannot be true. One thread an end.
 */
#ifndef MSH_RING_H
#define MSH_RING_H

#include "memshare/protocol.h"

enum { MSH_E_RING_EMPTY = 1 };

typedef struct MshRingEnd {
    MshRingMemory *memory;
    uint32_t pushed; /* by this end, into the ring it produces */
    uint32_t popped; /* by this end, from the ring it consumes */
} MshRingEnd;

/* memory is zero-filled and mapped writable by both sides. */
void msh_ring_init(MshRingEnd *end, MshRingMemory *memory);

/* 0 · -ENOBUFS full · -EPROTO */
int msh_ring_push_request(MshRingEnd *client, const MshRequest *request);
int msh_ring_push_reply(MshRingEnd *broker, const MshReply *reply);

/* 0 · MSH_E_RING_EMPTY · -EPROTO */
int msh_ring_pop_request(MshRingEnd *broker, MshRequest *ret_request);
int msh_ring_pop_reply(MshRingEnd *client, MshReply *ret_reply);

/* Entries that can be pushed now, or -EPROTO. */
int msh_ring_reply_room(const MshRingEnd *broker);
int msh_ring_request_room(const MshRingEnd *client);

#endif
