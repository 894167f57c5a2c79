/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the engine takes its fingerprints: a shared-page table, its own (local.c) or the broker's
 * (channel.c). Both answer the same questions; the engine sees slots in local numbering only.
 *
 * Threads: one at a time, under the work lock. The callbacks come on that thread.
 */
#ifndef MSH_EXCHANGE_H
#define MSH_EXCHANGE_H

#include "memshare/memshare.h"
#include "memshare/protocol.h"
#include "views.h"

typedef struct MshExchange MshExchange;

typedef struct MshSighting {
    uint64_t hash;
    uint32_t frame;
} MshSighting;

typedef struct MshAccount {
    uint64_t cost_bytes; /* this client's fair part of the store */
    uint32_t missed;     /* changes when pages should be sighted again: some were forgotten */
} MshAccount;

typedef struct MshExchangeEvents {
    /* The page may equal that slot, and is granted it: merge it or release it. */
    void (*match)(void *opaque, uint32_t frame, MshSlot slot);
    /* Copy the page's bytes, for the store. False: it is gone. */
    bool (*copy_page)(void *opaque, uint32_t frame, void *destination);
    /* A store came within reach: its key, and the userfaultfd device to use (-1: open it yourself).
     * Negative: this process cannot share; the exchange stays away from then on. */
    int (*connected)(void *opaque, const uint8_t *secret, int device_fd);
    /* It is gone. Mappings stay, grants are void. */
    void (*disconnected)(void *opaque);
    /* A view of it has begun to leave: what is mapped from there is to be sighted again. Grants
     * stay. */
    void (*emptying)(void *opaque);
    void *opaque;
} MshExchangeEvents;

typedef struct MshExchangeVerbs {
    /* Reconnects where due, takes hints. Never blocks. False: no store within reach. */
    bool (*poll)(MshExchange *exchange);
    /* Returns when all are answered, or the store is gone. */
    void (*sight)(MshExchange *exchange, const MshSighting *sightings, size_t count);
    void (*release)(MshExchange *exchange, const MshSlot *slots, size_t count);
    /* False: unknown. */
    bool (*account)(MshExchange *exchange, MshAccount *ret_account);
    /* The view is closed. */
    void (*forget)(MshExchange *exchange, uint32_t segment);
    /* Sleeps until something arrives, wake_fd is readable, or the time is up. */
    void (*wait)(MshExchange *exchange, int wake_fd, uint64_t timeout_ns);
    MshExchange *(*free)(MshExchange *exchange);
} MshExchangeVerbs;

struct MshExchange {
    const MshExchangeVerbs *verbs;
    MshExchangeEvents events;
    MshViews *views;
    uint32_t protocol; /* version spoken; 0: none */
    char why[MSH_TEXT_BYTES]; /* poll says false: why */
};

/* A table and store of the engine's own. */
int msh_local_new(const char *group, MshViews *views, const MshExchangeEvents *events,
                  MshExchange **ret_exchange, MshError *error);

/* The broker's, through its socket. Does not connect yet. */
int msh_channel_new(const char *socket_path, const char *group, const char *guest_name,
                    MshViews *views, const MshExchangeEvents *events, MshExchange **ret_exchange,
                    MshError *error);

#endif
