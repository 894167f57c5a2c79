/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guard.h"

#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "host.h"
#include "qemu_abi.h"
#include "ram.h"
#include "verdict.h"

#define LOOK_PERIOD_SECONDS 1
#define STOP_DEADLINE_SECONDS 1
#define SNAPSHOT_TRIES 8

/* While the block layer is drained the guest's disks and the monitor stand still: for a fifth of the time. */
#define QUIET_PERIOD_MS 100
#define QUIET_NS 20000000u
#define QUIET_REST_LOOKS 60 /* when a section over all memory has left something */

/* So many looks in a row must find no slot mapped: a window that was open when the mode changed may have
 * closed after the first. */
#define SLOTLESS_LOOKS 2

/* What we ask of QEMU about RAM discards. */
typedef enum Discards {
    DISCARDS_FREE,
    DISCARDS_REQUIRED, /* pages are replaced, which is one: who needs RAM to stay in place must not start */
    DISCARDS_DISABLED, /* nobody may discard: a page that is or was shared would not read as zero */
} Discards;

struct MshGuard {
    MshEngine *engine;

    /* Main loop only. */
    QemuNotifier migration;
    MshRam *ram;
    MshMode mode; /* as the operator wants it */
    bool started;
    Discards discards;
    bool held;
    bool must_release; /* discards could not be disabled: nothing may be shared any more */
    unsigned slotless_looks;
    bool is_quieting;    /* its timer runs */
    unsigned quiet_rest; /* looks until it may run */
    char ram_refusal[MSH_TEXT_BYTES]; /* of the last survey; "" if some block can be shared */

    pthread_mutex_t lock; /* of what follows; never held over a call that waits */
    pthread_cond_t wake;
    bool stopping;
    uint64_t looks_wanted, looks_done; /* at the host: one that began after it was wanted is done */
    MshHostFacts host;
    MshQemuFacts vm;
    char blind[MSH_TEXT_BYTES]; /* why the host's facts are not known; "" if they are */
    MshVerdict in_force;

    _Atomic bool nesting;

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
    guard->slotless_looks = SLOTLESS_LOOKS;
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

static void look_at_qemu(MshGuard *guard, MshQemuFacts *ret_facts)
{
    MshQemuFacts facts = {0};
    Object *machine = qemu.object_resolve_path_component(qemu.object_get_root(), "machine");

    facts.mem_merge_off = !qemu.object_property_get_bool(machine, "mem-merge", NULL);
    facts.confidential =
        qemu.object_property_get_link(machine, "confidential-guest-support", NULL) != NULL;
    facts.replaying = *qemu.replay_mode != 0;
    facts.incoming = is_incoming();
    facts.needs_plain_ram = qemu.migration_in_bg_snapshot();
    facts.discards_disabled =
        guard->discards == DISCARDS_FREE && qemu.ram_block_discard_is_disabled();
    memcpy(facts.ram_refusal, guard->ram_refusal, sizeof(facts.ram_refusal));
    qemu.object_child_foreach_recursive(machine, look_at_object, &facts);
    atomic_store(&guard->nesting, facts.nesting);
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

/*
 * Discards
 */

static void note_slots(MshGuard *guard)
{
    MshStats stats;

    msh_engine_stats(guard->engine, &stats);
    if (stats.mode == MSH_MODE_CONTENT || stats.shared_pages != 0 || stats.broken_pages != 0)
        guard->slotless_looks = 0;
}

/* Pages given back as zero are absent from the guest's RAM until touched, as after any discard: nobody
 * relies on them, so only SHARED and BROKEN pages keep a claim. */
static Discards wanted_discards(const MshGuard *guard, const MshQemuFacts *facts,
                                const MshVerdict *verdict)
{
    bool has_slots = guard->slotless_looks < SLOTLESS_LOOKS;

    if (has_slots && facts->free_page_reporting)
        return DISCARDS_DISABLED; /* I1 */
    if (has_slots || (verdict->ceiling != MSH_MODE_OFF && guard->mode != MSH_MODE_OFF))
        return DISCARDS_REQUIRED;
    return DISCARDS_FREE;
}

/* False: somebody needs the opposite. */
static bool claim_discards(MshGuard *guard, Discards wanted)
{
    int r = 0;

    if (wanted == guard->discards)
        return true;
    if (guard->discards == DISCARDS_REQUIRED)
        qemu.ram_block_discard_require(false);
    else if (guard->discards == DISCARDS_DISABLED)
        qemu.ram_block_discard_disable(false);
    guard->discards = DISCARDS_FREE;
    if (wanted == DISCARDS_REQUIRED)
        r = qemu.ram_block_discard_require(true);
    else if (wanted == DISCARDS_DISABLED)
        r = qemu.ram_block_discard_disable(true);
    if (r == 0)
        guard->discards = wanted;
    return r == 0;
}

/*
 * Quiet
 */

static bool pinned_by_others(const MshGuard *guard, const MshPins *pins)
{
    return pins->unknown || (pins->kvm && atomic_load(&((MshGuard *)guard)->nesting));
}

bool msh_guard_nothing_pinned(const MshGuard *guard)
{
    MshPins pins = msh_host_pins();

    return !pins.block_layer && !pinned_by_others(guard, &pins);
}

static bool needs_quiet(const MshGuard *guard)
{
    MshStats stats;

    msh_engine_stats(guard->engine, &stats);
    if (stats.mode == MSH_MODE_CONTENT || stats.shared_pages + stats.broken_pages == 0)
        return false;
    MshPins pins = msh_host_pins();
    return pins.block_layer && !pinned_by_others(guard, &pins);
}

/* Pages are copied behind the back of whoever has them pinned (I1), and so while nobody has: the block
 * layer has no request in flight, nor will it start one. Waits for disks. */
static bool release_quietly(MshGuard *guard, uint64_t budget_ns)
{
    bool has_more = false;

    qemu.bdrv_drain_all_begin();
    MshPins pins = msh_host_pins(); /* commands may have run meanwhile */
    if (!pinned_by_others(guard, &pins))
        has_more = msh_engine_release(guard->engine, budget_ns);
    qemu.bdrv_drain_all_end();
    return has_more;
}

static gboolean on_quiet_timer(gpointer opaque)
{
    MshGuard *guard = opaque;

    guard->is_quieting = needs_quiet(guard) && !guard->held;
    if (guard->is_quieting && !release_quietly(guard, QUIET_NS)) {
        guard->is_quieting = false;
        guard->quiet_rest = needs_quiet(guard) ? QUIET_REST_LOOKS : 0;
    }
    return guard->is_quieting;
}

static void quiet_if_needed(MshGuard *guard)
{
    if (guard->quiet_rest > 0) {
        guard->quiet_rest--;
    } else if (!guard->is_quieting && needs_quiet(guard)) {
        guard->is_quieting = true;
        g_timeout_add(QUIET_PERIOD_MS, on_quiet_timer, guard);
    }
}

/*
 * Looking
 */

/* Makes known what was found in QEMU; says what follows from it. */
static MshVerdict judge(MshGuard *guard, const MshQemuFacts *facts)
{
    pthread_mutex_lock(&guard->lock);
    guard->vm = *facts;
    MshVerdict verdict = verdict_locked(guard);
    pthread_mutex_unlock(&guard->lock);
    return verdict;
}

/* Raises or lowers, after the claim on discards that goes with it. Never waits. */
static MshVerdict decide(MshGuard *guard)
{
    MshQemuFacts facts;

    note_slots(guard);
    look_at_qemu(guard, &facts);
    MshVerdict verdict = judge(guard, &facts);
    Discards wanted = wanted_discards(guard, &facts, &verdict);
    bool is_claimed = claim_discards(guard, wanted);
    if (!is_claimed && wanted == DISCARDS_REQUIRED) {
        facts.discards_disabled = true;
        judge(guard, &facts);
    }
    guard->must_release = !is_claimed && wanted == DISCARDS_DISABLED;
    pthread_mutex_lock(&guard->lock);
    verdict = verdict_locked(guard);
    enforce_locked(guard, &verdict);
    pthread_mutex_unlock(&guard->lock);
    return verdict;
}

static void release_if_must(MshGuard *guard)
{
    if (guard->must_release)
        release_quietly(guard, UINT64_MAX);
}

/* Also while it is held: an engine that did not get there in time has another try. False: nor did it now. */
static bool hold(MshGuard *guard, bool hold)
{
    int r = hold || guard->held ? msh_engine_hold(guard->engine, hold) : 0;

    guard->held = hold;
    return r == 0;
}

static bool host_is_seen(MshGuard *guard)
{
    pthread_mutex_lock(&guard->lock);
    bool is_seen = guard->looks_done == guard->looks_wanted;
    pthread_mutex_unlock(&guard->lock);
    return is_seen;
}

/* One look of the main loop. May wait a while for the engine to be between two windows. */
static void look(MshGuard *guard)
{
    guard->slotless_looks += guard->slotless_looks < SLOTLESS_LOOKS;
    MshVerdict verdict = decide(guard);
    bool off = verdict.ceiling == MSH_MODE_OFF || guard->mode == MSH_MODE_OFF;

    release_if_must(guard);
    hold(guard, verdict.hold || !host_is_seen(guard));
    msh_ram_update(guard->ram, !off && !verdict.hold, guard->ram_refusal);
    quiet_if_needed(guard);
}

/* A source of GLib's default main context: QEMU dispatches it in its main loop under the big lock,
 * and not from the nested loops in which it waits for block devices. */
static gboolean on_timer(gpointer opaque)
{
    look(opaque);
    return G_SOURCE_CONTINUE;
}

/* A snapshot that is about to start registers all RAM itself, which fails where any of it is registered
 * still, and leaves the guest stopped: worth a longer wait. Called by the main loop, before there is a thread
 * of migration. */
static int on_migration(QemuNotifier *notifier, void *event, Error **errp)
{
    MshGuard *guard = (MshGuard *)((char *)notifier - offsetof(MshGuard, migration));

    (void)event;
    for (unsigned tries = 0; decide(guard).hold && !hold(guard, true); tries++) {
        if (tries == SNAPSHOT_TRIES) {
            qemu.error_setg_internal(errp, __FILE__, __LINE__, __func__,
                                     "memshare has not let go of the guest's memory in time: try again");
            return -EBUSY;
        }
    }
    return 0;
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
        uint64_t wanted = guard->looks_wanted;
        if (wanted == guard->looks_done &&
            pthread_cond_timedwait(&guard->wake, &guard->lock, &next) != ETIMEDOUT)
            continue;
        pthread_mutex_unlock(&guard->lock);
        look_at_host(guard);
        lower(guard);
        pthread_mutex_lock(&guard->lock);
        guard->looks_done = wanted;
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
    qemu.migration_add_notifier(&guard->migration, on_migration);
    g_timeout_add_seconds(LOOK_PERIOD_SECONDS, on_timer, guard);
    return 0;
}

void msh_guard_set_mode(MshGuard *guard, MshMode mode)
{
    guard->mode = mode;
    guard->quiet_rest = 0;
    if (guard->started)
        decide(guard);
    msh_engine_set_mode(guard->engine, mode);
}

void msh_guard_on_device(MshGuard *guard)
{
    if (!guard->started)
        return;
    decide(guard);
    release_if_must(guard);
    pthread_mutex_lock(&guard->lock);
    guard->looks_wanted++;
    pthread_cond_signal(&guard->wake);
    pthread_mutex_unlock(&guard->lock);
    hold(guard, true);
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
