/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "qom.h"

#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>

#include "qemu_abi.h"

#define OBJECT_NAME "memshare0"
#define OBJECT_PATH "/objects/" OBJECT_NAME

static MshEngine *engine; /* NULL: refused, and `refused` is all there is to say */
static MshGuard *guard;
static MshStats refused;

#define fail(errp, ...) qemu.error_setg_internal(errp, __FILE__, __LINE__, __func__, __VA_ARGS__)

/*
 * stats
 */

static bool visit_text(Visitor *visitor, const char *name, const char *text, Error **errp)
{
    char *value = (char *)text; /* an output visitor does not write to it */

    return qemu.visit_type_str(visitor, name, &value, errp);
}

static bool visit_buckets(Visitor *visitor, const char *name, uint64_t *buckets, size_t count,
                          Error **errp)
{
    bool ok = qemu.visit_start_list(visitor, name, NULL, 0, errp);

    if (!ok)
        return false;
    for (size_t i = 0; ok && i < count; i++)
        ok = qemu.visit_type_uint64(visitor, NULL, &buckets[i], errp);
    ok = ok && qemu.visit_check_list(visitor, errp);
    qemu.visit_end_list(visitor, NULL);
    return ok;
}

static bool visit_stats(Visitor *visitor, MshStats *stats, Error **errp)
{
    uint64_t cpu_limit_percent = stats->cpu_limit_percent;
    char protocol[16];

    snprintf(protocol, sizeof(protocol), "%" PRIu32, stats->protocol);
#define TEXT(name, value) visit_text(visitor, name, value, errp)
#define NUMBER(field) qemu.visit_type_uint64(visitor, #field, &stats->field, errp)
    return TEXT("version", stats->version) && TEXT("protocol", protocol) &&
           TEXT("state", msh_state_name(stats->state)) && TEXT("refusal", stats->refusal) &&
           TEXT("group", stats->group) && TEXT("mode", msh_mode_name(stats->mode)) &&
           NUMBER(scan_rate_pages) &&
           qemu.visit_type_uint64(visitor, "cpu_limit_percent", &cpu_limit_percent, errp) &&
           NUMBER(ram_bytes) && NUMBER(present_pages) && NUMBER(shared_pages) &&
           NUMBER(broken_pages) && NUMBER(zero_pages) && NUMBER(unique_pages) &&
           NUMBER(volatile_pages) && NUMBER(tracked_pages) && NUMBER(saved_content_bytes) && NUMBER(saved_zero_bytes) &&
           NUMBER(overhead_bytes) && NUMBER(scanned_pages) && NUMBER(skipped_pages) && NUMBER(changed_pages) &&
           NUMBER(hashed_pages) && NUMBER(merged_pages) && NUMBER(zeroed_pages) && NUMBER(breaks) &&
           NUMBER(rebuilt_pages) && NUMBER(compare_failures) && NUMBER(pinned_skips) &&
           NUMBER(scan_cpu_ns) && NUMBER(windows) &&
           visit_buckets(visitor, "window_time_ns", stats->window_time_ns, MSH_WINDOW_BUCKETS,
                         errp) &&
           NUMBER(slept_faults) && NUMBER(mappings) && NUMBER(mappings_limit) && NUMBER(passes) &&
           NUMBER(pass_age_ns);
#undef TEXT
#undef NUMBER
}

static void take_stats(MshStats *ret_stats)
{
    if (engine != NULL)
        msh_engine_stats(engine, ret_stats);
    else
        *ret_stats = refused;
}

static void get_stats(Object *object, Visitor *visitor, const char *name, void *opaque,
                      Error **errp)
{
    MshStats stats;

    (void)object;
    (void)opaque;
    take_stats(&stats);
    if (!qemu.visit_start_struct(visitor, name, NULL, 0, errp))
        return;
    if (visit_stats(visitor, &stats, errp))
        qemu.visit_check_struct(visitor, errp);
    qemu.visit_end_struct(visitor, NULL);
}

/*
 * mode, scan-rate, cpu-limit
 */

static void get_mode(Object *object, Visitor *visitor, const char *name, void *opaque, Error **errp)
{
    MshStats stats;

    (void)object;
    (void)opaque;
    take_stats(&stats);
    visit_text(visitor, name, msh_mode_name(stats.mode), errp);
}

static void set_mode(Object *object, Visitor *visitor, const char *name, void *opaque, Error **errp)
{
    char *text = NULL;
    MshMode mode;

    (void)object;
    (void)opaque;
    if (!qemu.visit_type_str(visitor, name, &text, errp))
        return;
    if (msh_mode_parse(text, &mode) == 0)
        msh_guard_set_mode(guard, mode);
    else
        fail(errp, "mode: '%s' is none of off, zero, content", text);
    g_free(text);
}

static void get_scan_rate(Object *object, Visitor *visitor, const char *name, void *opaque,
                          Error **errp)
{
    MshStats stats;

    (void)object;
    (void)opaque;
    take_stats(&stats);
    qemu.visit_type_uint64(visitor, name, &stats.scan_rate_pages, errp);
}

static void set_scan_rate(Object *object, Visitor *visitor, const char *name, void *opaque,
                          Error **errp)
{
    uint64_t pages_per_second;

    (void)object;
    (void)opaque;
    if (!qemu.visit_type_uint64(visitor, name, &pages_per_second, errp))
        return;
    /* The visitor takes -5 for 2^64 - 5. Only -1 has a meaning: MSH_RATE_UNLIMITED. */
    if ((pages_per_second > INT64_MAX && pages_per_second != MSH_RATE_UNLIMITED) ||
        msh_engine_set_scan_rate(engine, pages_per_second) != 0)
        fail(errp, "scan-rate: %" PRId64 " is not a number of pages per second",
             (int64_t)pages_per_second);
}

static void get_cpu_limit(Object *object, Visitor *visitor, const char *name, void *opaque,
                          Error **errp)
{
    MshStats stats;
    uint64_t percent;

    (void)object;
    (void)opaque;
    take_stats(&stats);
    percent = stats.cpu_limit_percent;
    qemu.visit_type_uint64(visitor, name, &percent, errp);
}

static void set_cpu_limit(Object *object, Visitor *visitor, const char *name, void *opaque,
                          Error **errp)
{
    uint64_t percent;

    (void)object;
    (void)opaque;
    if (!qemu.visit_type_uint64(visitor, name, &percent, errp))
        return;
    if (percent > MSH_CPU_LIMIT_PERCENT_MAX ||
        msh_engine_set_cpu_limit(engine, (uint32_t)percent) != 0)
        fail(errp, "cpu-limit: %" PRIu64 " is not a percentage of one core (0 to %u)", percent,
             MSH_CPU_LIMIT_PERCENT_MAX);
}

/*
 * The object
 */

/* QEMU treats whatever stands in /objects as user-creatable when it is asked to delete it, and
 * calls into its class. So the object is of a stock type that is, and that never lets itself be
 * deleted. Its own purpose (a virtual CAN bus without members) does nothing. */
#define OBJECT_TYPE "can-bus"

static int new_object(Object **ret_object, MshError *error)
{
    Object *objects = qemu.object_get_objects_root();

    if (qemu.object_resolve_path_component(objects, OBJECT_NAME) != NULL)
        return msh_error_set(error, -EEXIST, "there is an object %s already", OBJECT_PATH);
    if (qemu.object_class_by_name(OBJECT_TYPE) == NULL)
        return msh_error_set(error, -ENOSYS, "this qemu has no type " OBJECT_TYPE);
    /* The reference from object_new() is kept for good: the properties outlive any clean-up. */
    Object *object = qemu.object_new(OBJECT_TYPE);
    qemu.object_property_add_child(objects, OBJECT_NAME, object);
    *ret_object = object;
    return 0;
}

static void add(Object *object, const char *name, const char *type, PropertyAccess *get,
                PropertyAccess *set, const char *description)
{
    qemu.object_property_add(object, name, type, get, set, NULL, NULL);
    qemu.object_property_set_description(object, name, description);
}

static void add_stats(Object *object)
{
    add(object, "stats", "MemshareStats", get_stats, NULL, "what sharing does and saves");
}

int msh_qom_publish(MshEngine *new_engine, MshGuard *new_guard, MshError *error)
{
    Object *object;
    int r = new_object(&object, error);

    if (r < 0)
        return r;
    engine = new_engine;
    guard = new_guard;
    add_stats(object);
    add(object, "mode", "str", get_mode, set_mode, "off, zero or content");
    add(object, "scan-rate", "uint64", get_scan_rate, set_scan_rate,
        "pages per second; 0 pauses, -1 is unlimited");
    add(object, "cpu-limit", "uint64", get_cpu_limit, set_cpu_limit,
        "percent of one core; 0 is no limit");
    return 0;
}

int msh_qom_publish_refusal(const char *group, const char *reason, MshError *error)
{
    Object *object;
    int r = new_object(&object, error);

    if (r < 0)
        return r;
    refused.state = MSH_STATE_REFUSED;
    snprintf(refused.version, sizeof(refused.version), "%s", MSH_VERSION);
    snprintf(refused.group, sizeof(refused.group), "%s", group);
    snprintf(refused.refusal, sizeof(refused.refusal), "%s", reason);
    add_stats(object);
    return 0;
}
