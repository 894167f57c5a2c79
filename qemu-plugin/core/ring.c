/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rings. The indices count for ever and wrap at 2^32, a multiple of MSH_RING_ENTRIES, so that their
 * difference is right across the wrap.
 */
#include "ring.h"

#include <errno.h>

static_assert((MSH_RING_ENTRIES & (MSH_RING_ENTRIES - 1)) == 0, "indices wrap at 2^32");

void msh_ring_init(MshRingEnd *end, MshRingMemory *memory)
{
    *end = (MshRingEnd){.memory = memory};
}

/* Entries between what was pushed and what was popped, one of them our own count, the other read
 * from shared memory just now; -EPROTO when no honest peer could have written it. */
static int filled(uint32_t pushed, uint32_t popped)
{
    uint32_t entries = pushed - popped;
    return entries <= MSH_RING_ENTRIES ? (int)entries : -EPROTO;
}

static uint32_t peer_count(const uint32_t *count)
{
    return __atomic_load_n(count, __ATOMIC_ACQUIRE);
}

/* Release: the entry's bytes are visible before the count that covers them, and our reads of an
 * entry are over before the count that gives it back. */
static void publish(uint32_t *count, uint32_t value)
{
    __atomic_store_n(count, value, __ATOMIC_RELEASE);
}

static int room(uint32_t pushed, const MshRingIndex *index)
{
    int entries = filled(pushed, peer_count(&index->popped));
    return entries < 0 ? entries : (int)MSH_RING_ENTRIES - entries;
}

int msh_ring_request_room(const MshRingEnd *client)
{
    return room(client->pushed, &client->memory->request_index);
}

int msh_ring_reply_room(const MshRingEnd *broker)
{
    return room(broker->pushed, &broker->memory->reply_index);
}

int msh_ring_push_request(MshRingEnd *client, const MshRequest *request)
{
    int entries = msh_ring_request_room(client);
    if (entries <= 0)
        return entries < 0 ? entries : -ENOBUFS;
    client->memory->requests[client->pushed % MSH_RING_ENTRIES] = *request;
    publish(&client->memory->request_index.pushed, ++client->pushed);
    return 0;
}

int msh_ring_push_reply(MshRingEnd *broker, const MshReply *reply)
{
    int entries = msh_ring_reply_room(broker);
    if (entries <= 0)
        return entries < 0 ? entries : -ENOBUFS;
    broker->memory->replies[broker->pushed % MSH_RING_ENTRIES] = *reply;
    publish(&broker->memory->reply_index.pushed, ++broker->pushed);
    return 0;
}

/* The copies below are volatile: one read of each entry, whatever the caller is inlined into. A
 * second read could see other numbers than the ones that were checked. */
int msh_ring_pop_request(MshRingEnd *broker, MshRequest *ret_request)
{
    MshRingIndex *index = &broker->memory->request_index;
    int entries = filled(peer_count(&index->pushed), broker->popped);
    if (entries <= 0)
        return entries < 0 ? entries : MSH_E_RING_EMPTY;
    *ret_request =
        *(const volatile MshRequest *)&broker->memory->requests[broker->popped % MSH_RING_ENTRIES];
    publish(&index->popped, ++broker->popped);
    return 0;
}

int msh_ring_pop_reply(MshRingEnd *client, MshReply *ret_reply)
{
    MshRingIndex *index = &client->memory->reply_index;
    int entries = filled(peer_count(&index->pushed), client->popped);
    if (entries <= 0)
        return entries < 0 ? entries : MSH_E_RING_EMPTY;
    *ret_reply =
        *(const volatile MshReply *)&client->memory->replies[client->popped % MSH_RING_ENTRIES];
    publish(&index->popped, ++client->popped);
    return 0;
}
