/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guard.h"

#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "host.h"
#include "qemu_abi.h"
#include "ram.h"
#include "verdict.h"

#define LOOK_PERIOD_SECONDS 1
#define STOP_DEADLINE_SECONDS 1

struct MshGuard {
    MshEngine *engine;

    /* Main loop only. */
    MshRam *ram;
    MshMode mode; /* as the operator wants it */
    bool started;
    bool discards_required;
    bool held;
    unsigned quiet_looks;             /* in a row that found nothing shared */
    char ram_refusal[MSH_TEXT_BYTES]; /* of the last survey; "" if some block can be shared */

    pthread_mutex_t lock; /* of what follows; never held over a call that waits */
    pthread_cond_t wake;
    bool stopping;
    MshHostFacts host;
    MshQemuFacts vm;
    char blind[MSH_TEXT_BYTES]; /* why the host's facts are not known; "" if they are */
    MshVerdict in_force;

    pthread_t watcher;
};

MshGuard *msh_guard_new(MshEngine *engine, MshMode mode)
{
    MshGuard *guard = g_new0(MshGuard, 1);
    pthread_condattr_t attributes;

    guard->engine = engine;
    guard->mode = mode;
    guard->ram = msh_ram_new(engine);
    guard->in_force.ceiling = MSH_MODE_CONTENT; /* what a new engine starts with */
    pthread_mutex_init(&guard->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&guard->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    return guard;
}

/*
 * Facts
 */

static int look_at_object(Object *object, void *opaque)
{
    MshQemuFacts *facts = opaque;
    const char *type = qemu.object_get_typename(object);

    if (strncmp(type, "virtio-mem", strlen("virtio-mem")) == 0)
        facts->virtio_mem = true;
    /* An object without the property has it off. */
    if (g_str_has_suffix(type, "-cpu") && (qemu.object_property_get_bool(object, "vmx", NULL) ||
                                           qemu.object_property_get_bool(object, "svm", NULL)))
        facts->nesting = true;
    if (strncmp(type, "virtio-balloon", strlen("virtio-balloon")) == 0 &&
        qemu.object_property_get_bool(object, "free-page-reporting", NULL))
        facts->free_page_reporting = true;
    return 0;
}

static bool is_incoming(void)
{
    int inmigrate = qemu.qapi_enum_parse(qemu.RunState_lookup, "inmigrate", -1, NULL);

    /* In postcopy the guest runs while its pages still arrive, through a userfaultfd. */
    return qemu.runstate_check(inmigrate) || qemu.migration_in_incoming_postcopy();
}

static void look_at_qemu(const MshGuard *guard, MshQemuFacts *ret_facts)
{
    MshQemuFacts facts = {0};
    Object *machine = qemu.object_resolve_path_component(qemu.object_get_root(), "machine");

    facts.mem_merge_off = !qemu.object_property_get_bool(machine, "mem-merge", NULL);
    facts.confidential =
        qemu.object_property_get_link(machine, "confidential-guest-support", NULL) != NULL;
    facts.replaying = *qemu.replay_mode != 0;
    facts.incoming = is_incoming();
    facts.needs_plain_ram = qemu.migrate_background_snapshot();
    facts.discards_disabled = !guard->discards_required && qemu.ram_block_discard_is_disabled();
    memcpy(facts.ram_refusal, guard->ram_refusal, sizeof(facts.ram_refusal));
    qemu.object_child_foreach_recursive(machine, look_at_object, &facts);
    *ret_facts = facts;
}

static void look_at_host(MshGuard *guard)
{
    MshHostFacts facts = {0};
    MshError error = {0};
    int r = msh_host_facts(&facts, &error);

    pthread_mutex_lock(&guard->lock);
    if (r < 0) {
        snprintf(guard->blind, sizeof(guard->blind), "%.180s", error.text);
    } else {
        guard->host = facts;
        guard->blind[0] = '\0';
    }
    pthread_mutex_unlock(&guard->lock);
}

/*
 * Verdict
 */

static MshVerdict verdict_locked(const MshGuard *guard)
{
    MshVerdict verdict = msh_verdict(&guard->host, &guard->vm);

    if (guard->blind[0] != '\0') {
        verdict.ceiling = MSH_MODE_OFF;
        memcpy(verdict.reason, guard->blind, sizeof(verdict.reason));
    }
    return verdict;
}

static void enforce_locked(MshGuard *guard, const MshVerdict *verdict)
{
    if (verdict->ceiling == guard->in_force.ceiling &&
        strcmp(verdict->reason, guard->in_force.reason) == 0)
        return;
    msh_engine_set_ceiling(guard->engine, verdict->ceiling, verdict->reason);
    guard->in_force = *verdict;
}

/* Any thread. */
static void lower(MshGuard *guard)
{
    pthread_mutex_lock(&guard->lock);
    MshVerdict verdict = verdict_locked(guard);
    if (verdict.ceiling <= guard->in_force.ceiling)
        enforce_locked(guard, &verdict);
    pthread_mutex_unlock(&guard->lock);
}

/* The requirement fails only when somebody needs the opposite; then that is the fact. */
static void require_discards(MshGuard *guard, MshQemuFacts *facts)
{
    if (qemu.ram_block_discard_require(true) < 0)
        facts->discards_disabled = true;
    else
        guard->discards_required = true;
}

/* Pages given back as zero are absent from the guest's RAM until touched, as after any discard:
 * nobody relies on them, so only SHARED and BROKEN pages keep the requirement. Two looks in a row
 * must find none: a window that was open when the mode changed may have closed after the first. */
static void release_discards(MshGuard *guard, bool off)
{
    MshStats stats;

    msh_engine_stats(guard->engine, &stats);
    if (!off || stats.mode != MSH_MODE_OFF || stats.shared_pages != 0 || stats.broken_pages != 0)
        guard->quiet_looks = 0;
    else
        guard->quiet_looks++;
    if (guard->discards_required && guard->quiet_looks >= 2) {
        qemu.ram_block_discard_require(false);
        guard->discards_required = false;
    }
}

/* Makes known what was found in QEMU; says what follows from it. */
static MshVerdict judge(MshGuard *guard, const MshQemuFacts *facts)
{
    pthread_mutex_lock(&guard->lock);
    guard->vm = *facts;
    MshVerdict verdict = verdict_locked(guard);
    pthread_mutex_unlock(&guard->lock);
    return verdict;
}

/* Raises or lowers, after the requirement that goes with it. Never waits. */
static MshVerdict decide(MshGuard *guard)
{
    MshQemuFacts facts;

    look_at_qemu(guard, &facts);
    MshVerdict verdict = judge(guard, &facts);
    if (verdict.ceiling != MSH_MODE_OFF && guard->mode != MSH_MODE_OFF &&
        !guard->discards_required) {
        require_discards(guard, &facts);
        judge(guard, &facts);
    }
    pthread_mutex_lock(&guard->lock);
    verdict = verdict_locked(guard);
    enforce_locked(guard, &verdict);
    pthread_mutex_unlock(&guard->lock);
    return verdict;
}

/* One look of the main loop. May wait for the engine to be between two windows. */
static void look(MshGuard *guard)
{
    MshVerdict verdict = decide(guard);
    bool off = verdict.ceiling == MSH_MODE_OFF || guard->mode == MSH_MODE_OFF;

    if (verdict.hold != guard->held) {
        msh_engine_hold(guard->engine, verdict.hold);
        guard->held = verdict.hold;
    }
    msh_ram_update(guard->ram, !off && !verdict.hold, guard->ram_refusal);
    release_discards(guard, off);
}

/* A source of GLib's default main context: QEMU dispatches it in its main loop under the big lock,
 * and not from the nested loops in which it waits for block devices. */
static gboolean on_timer(gpointer opaque)
{
    look(opaque);
    return G_SOURCE_CONTINUE;
}

/*
 * Watching
 */

static void *watch(void *opaque)
{
    MshGuard *guard = opaque;
    struct timespec next;

    pthread_mutex_lock(&guard->lock);
    while (!guard->stopping) {
        clock_gettime(CLOCK_MONOTONIC, &next);
        next.tv_sec += LOOK_PERIOD_SECONDS;
        if (pthread_cond_timedwait(&guard->wake, &guard->lock, &next) != ETIMEDOUT)
            continue;
        pthread_mutex_unlock(&guard->lock);
        look_at_host(guard);
        lower(guard);
        pthread_mutex_lock(&guard->lock);
    }
    pthread_mutex_unlock(&guard->lock);
    return NULL;
}

/* Signals are QEMU's: its main thread waits for them, and no other may take one. */
static int start_watcher(MshGuard *guard, MshError *error)
{
    sigset_t all, before;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&guard->watcher, NULL, watch, guard);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        return msh_error_set(error, -r, "cannot start a thread: %s", strerror(r));
    return 0;
}

int msh_guard_start(MshGuard *guard, MshError *error)
{
    int r;

    look_at_host(guard);
    /* What no block can change is known before memory is registered, and the rest right after. */
    look(guard);
    decide(guard);
    r = msh_engine_start(guard->engine, error);
    if (r == 0)
        r = start_watcher(guard, error);
    if (r < 0) {
        msh_engine_set_ceiling(guard->engine, MSH_MODE_OFF, error->text);
        return r;
    }
    guard->started = true;
    g_timeout_add_seconds(LOOK_PERIOD_SECONDS, on_timer, guard);
    return 0;
}

void msh_guard_set_mode(MshGuard *guard, MshMode mode)
{
    guard->mode = mode;
    if (guard->started)
        decide(guard);
    msh_engine_set_mode(guard->engine, mode);
}

void msh_guard_stop(MshGuard *guard)
{
    struct timespec deadline;

    if (!guard->started)
        return;
    pthread_mutex_lock(&guard->lock);
    guard->stopping = true;
    pthread_cond_signal(&guard->wake);
    pthread_mutex_unlock(&guard->lock);

    /* Not longer than that: the thread may be inside a file system that never answers. */
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += STOP_DEADLINE_SECONDS;
    pthread_timedjoin_np(guard->watcher, NULL, &deadline);
    msh_engine_hold(guard->engine, true);
}
