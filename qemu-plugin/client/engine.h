/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the engine share: the state behind memshare.h.
 *
 * Locks, in the order they may be taken (a lower one while holding none of the higher):
 *   0 start    who makes the threads: of two callers one, while the other waits
 *   1 work     who drives a pass: scans, asks the exchange, may wait for the broker
 *   2 memory   regions, page map, views, windows: held for one block of scanning or one window
 *   3 queue    candidates on their way to the window thread, slots on their way back
 * register, hold and detach take 2 and 3 only, so a slow broker never makes them wait. Stats and
 * steering take none: all that they read, they read as atomics.
 */
#ifndef MSH_ENGINE_H
#define MSH_ENGINE_H

#include <pthread.h>

#include "counters.h"
#include "exchange.h"
#include "memory.h"
#include "memshare/memshare.h"
#include "memshare/protocol.h"
#include "moving.h"
#include "pace.h"
#include "rebuild.h"
#include "rehome.h"
#include "runs.h"
#include "scan.h"
#include "texts.h"
#include "views.h"
#include "window.h"

typedef struct MshCandidates {
    MshCandidate *items;
    size_t count, capacity;
} MshCandidates;

typedef struct MshSlots {
    MshSlot *items;
    size_t count, capacity;
} MshSlots;

enum { MSH_ASKING_MAX = MSH_RING_OUTSTANDING };

struct MshEngine {
    char group[MSH_NAME_BYTES];
    bool has_broker;
    bool (*nothing_pinned)(void *opaque);
    void *opaque;
    uint64_t patience_ns;

    /* steering and facts: atomics */
    _Atomic uint32_t mode, ceiling, cpu_limit_percent;
    _Atomic uint64_t scan_rate_pages;
    _Atomic bool wants_anew; /* the next pass shall look at everything */
    _Atomic bool is_held, is_stopping, is_started, is_connected;
    _Atomic bool is_barred; /* for good: it merges nothing. Set under the memory lock */
    _Atomic uint32_t protocol;
    MshCounters counters;
    MshTexts texts;
    MshText ceiling_reason, barred_reason, exchange_reason;

    /* work lock */
    pthread_mutex_t work_lock;
    MshExchange *exchange;
    MshScan scan;
    MshVisit visit;
    MshCandidates pending; /* found since the last hand-over */
    MshSighting asking[MSH_ASKING_MAX]; /* to be asked about, many at once: each time the broker has to wake */
    size_t asking_count;
    uint8_t secret[MSH_SECRET_BYTES];
    uint64_t mappings_counted_ns;
    bool had_store;
    MshMoving moving;
    uint32_t release_frame; /* where un-sharing goes on */
    uint32_t missed; /* as the exchange last told */
    uint64_t anew_earliest_ns, anew_rest_ns;
    uint64_t open_unrested_ns, rest_ns; /* of windows since the last rest, and what they flushed: the window thread's */
    uint32_t flushes_unrested;
    uint64_t account_earliest_ns, accounted_moves;

    /* memory lock */
    pthread_mutex_t memory_lock;
    uint32_t quiet_frame; /* where msh_engine_release() goes on */
    MshMemory memory;
    MshViews views;
    MshWindow window;
    bool has_window;
    MshRebuild rebuild;
    bool has_rebuild; /* it is to be ended; whether it works it says itself */

    /* queue lock */
    pthread_mutex_t queue_lock;
    pthread_cond_t queue_filled;
    MshCandidates queue;
    MshSlots returned;
    bool is_merging; /* the window thread holds candidates of its own */

    /* start lock; who reads them knows that they were made */
    pthread_mutex_t start_lock;
    pthread_t scan_thread, window_thread;

    int wake_fd;
};

/* The mode in force: what was asked for, within the ceiling. */
MshMode msh_engine_mode(const MshEngine *engine);

uint64_t msh_engine_now_ns(void);
/* User and system time of a thread of this process; 0 for one that has ended. */
uint64_t msh_engine_thread_cpu_ns(pthread_t thread);

#endif
