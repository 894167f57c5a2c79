/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libmemshare: share pages of equal contents between processes, copy-on-write.
 *
 * Any process may register its own private anonymous memory, as /dev/ksm allowed. The engine scans
 * it, finds pages equal to pages of other processes of the same group, and replaces them by
 * copy-on-write mappings of one common copy. The registered addresses stay valid and readable and
 * writable throughout; a touch of a page that is just being replaced waits a fraction of a
 * millisecond.
 *
 * Caveats first:
 *   - A process that forks while sharing gives its child whatever mapping was in place; the child's
 *     registered memory must be MADV_DONTFORK if the child may run for long.
 *   - Other users of userfaultfd on the same memory are refused (EBUSY), by the kernel.
 *   - Memory that is referenced behind the page tables without being pinned (O_DIRECT on network
 *     file systems, vhost-scsi) must not be registered: no interface lets the engine see such users.
 *   - One engine a process is the rule; several are possible on disjoint memory.
 *
 * Threads: every function may be called from any thread unless it says otherwise. Functions marked
 * "waits" block until the engine's own threads are between two windows; those marked "waits a while" give up
 * with -ETIMEDOUT after MshConfig.patience_ns.
 */
#ifndef MEMSHARE_MEMSHARE_H
#define MEMSHARE_MEMSHARE_H

#include "memshare/error.h"
#include "memshare/stats.h"
#include "memshare/units.h"

/* Declared here: visible to users of the library, which hides everything else. */
#pragma GCC visibility push(default)

typedef struct MshEngine MshEngine;

typedef struct MshConfig {
    const char *socket_path; /* the group's socket; NULL: a table and store of the engine's own */
    const char *group;       /* 1 to 63 of [a-z0-9._-], not starting with a dot; NULL: "default" */
    const char *guest_name;  /* shown by the broker; NULL: "pid N" */
    MshMode mode;
    uint64_t scan_rate_pages;   /* pages per second; 0 pauses; MSH_RATE_UNLIMITED */
    uint32_t cpu_limit_percent; /* of one core, for both threads; 0: no limit */

    /* Asked before the contents of pages that a kernel reference might pin are copied rather than moved,
     * to give plain memory back: true means that no I/O into registered memory is in flight or will
     * be started. NULL: never; pages are then made private inside their store mappings. Called from
     * any thread, also while a window is open: must not block, nor touch registered memory. */
    bool (*nothing_pinned)(void *opaque);
    void *opaque;

    /* Merges again at once what was written soon after it was merged: saves a little more of memory that is written all
     * the time, for much more CPU. Otherwise such pages have to be left alone for up to half a minute. */
    bool is_eager;

    uint64_t patience_ns; /* for callers that must not be stopped by an engine that does not get on; 0:
                             endless */
} MshConfig;

/*
 * Life cycle
 */

/* Probes the host and makes an engine; starts no thread. A broker that is not there is no error: the
 * engine retries with back-off and its state says so.
 * -EINVAL bad configuration · -ENOSYS the kernel cannot do it (error names what is missing). */
int msh_engine_new(const MshConfig *config, MshEngine **ret_engine, MshError *error);

/* Detaches, stops the threads, frees. Accepts NULL, returns NULL. Waits. */
MshEngine *msh_engine_free(MshEngine *engine);

/* Starts the two background threads, or none where it fails; a second call does nothing. */
int msh_engine_start(MshEngine *engine, MshError *error);

/* Sets mode off and un-shares everything before it returns: each SHARED page becomes private, in plain
 * memory where nothing_pinned allows it. Returns all slots. Memory stays registered. Waits. */
int msh_engine_detach(MshEngine *engine, MshError *error);

/* For a host process that can make nothing_pinned true for a while only: the caller vouches that it is,
 * until this returns. Where the mode is not content, what is or was shared becomes plain memory, all of it
 * or until about budget_ns have passed: then it returns true, and the next call goes on from there. Waits; with
 * a budget other than UINT64_MAX a while, and returns true as well. */
bool msh_engine_release(MshEngine *engine, uint64_t budget_ns);

/*
 * Memory
 */

/* Registers private anonymous memory of this process. All or nothing.
 * -EINVAL unaligned or empty · -ENOMEM not mapped, whole or in part · -EPERM shared, file-backed,
 * locked, hugetlb or not writable · -E2BIG beyond what frame numbers can name · -EEXIST overlaps memory
 * that an engine of this process has registered already. Waits a while. */
int msh_engine_register(MshEngine *engine, void *address, size_t length_bytes, MshError *error);

/* Un-shares and forgets one registered range, given as it was registered. -ENOENT. Waits a while; -ETIMEDOUT:
 * nothing of it is shared anew, and the next call goes on with what is still shared. */
int msh_engine_unregister(MshEngine *engine, void *address, MshError *error);

/*
 * Steering: sets atomics only, never waits
 */
int msh_engine_set_mode(MshEngine *engine, MshMode mode);
/* Rate 0 pauses: nothing new is shared, what is shared stays, and soon no userfaultfd registration is left. */
int msh_engine_set_scan_rate(MshEngine *engine, uint64_t pages_per_second);
int msh_engine_set_cpu_limit(MshEngine *engine, uint32_t percent);

/* The host process's own limit: the mode in force is never above the ceiling, and reason is what
 * stats.refusal says. Ceiling MSH_MODE_OFF refuses and un-shares. Ceiling MSH_MODE_CONTENT lifts it. */
int msh_engine_set_ceiling(MshEngine *engine, MshMode ceiling, const char *reason);

/* While held no window is opened and no userfaultfd registration is kept; what is shared stays
 * shared. On return of 0 with hold = true the last window is closed. Waits a while; -ETIMEDOUT: no new window
 * is opened, but one may be open still. */
int msh_engine_hold(MshEngine *engine, bool hold);

/*
 * Work and facts
 */

/* One complete, deterministic pass over all registered memory on the calling thread, without pacing:
 * visit, exchange with the table, merge what matched; in mode off, un-share all. Waits. */
int msh_engine_scan_once(MshEngine *engine, MshError *error);

/* A snapshot; never waits, never takes an engine lock. */
void msh_engine_stats(const MshEngine *engine, MshStats *ret_stats);

#pragma GCC visibility pop

#endif
