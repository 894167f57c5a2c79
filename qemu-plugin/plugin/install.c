/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu_plugin_install(): from the arguments of -plugin to an engine that starts when the machine is
 * built.
 *
 * The rule of this folder: inside somebody's VM nothing aborts, blocks or allocates without bound.
 * Only a wrong argument keeps the VM from starting; whatever else is in the way leaves it running
 * without sharing, and is told in `stats.refusal`, or on stderr if there is no object to tell it
 * by.
 *
 * Threads: QEMU's main thread only, but for the one callback that says otherwise.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "memshare/memshare.h"
#include "qemu_abi.h"
#include "qom.h"

#define SOCKET_DIRECTORY "/run/memshare"
#define PATIENCE_NS 250000000u   /* of the main loop, with an engine that does not get on */
#define SCAN_RATE_DEFAULT 10000u /* pages per second: 40 MB/s looked at */

typedef struct Options {
    char socket_path[256];
    char group[MSH_NAME_BYTES];
    MshMode mode;
    uint64_t scan_rate_pages;
    uint32_t cpu_limit_percent;
    bool is_eager;
} Options;

static MshEngine *engine;
static MshGuard *guard;
static pid_t owner;

static void say(const char *prefix, const MshError *error)
{
    fprintf(stderr, "memshare: %s%s\n", prefix, error->text);
}

/*
 * Arguments
 */

static int parse_text(const char *key, const char *value, char *ret_text, size_t text_bytes,
                      MshError *error)
{
    if (value[0] == '\0')
        return msh_error_set(error, -EINVAL, "%s= is empty", key);
    if (strlen(value) >= text_bytes)
        return msh_error_set(error, -EINVAL, "%s= is longer than %zu characters", key,
                             text_bytes - 1);
    memcpy(ret_text, value, strlen(value) + 1);
    return 0;
}

static int parse_number(const char *key, const char *value, uint64_t max, uint64_t *ret_number,
                        MshError *error)
{
    char *end;

    errno = 0;
    uint64_t number = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != '\0' || errno != 0 || number > max)
        return msh_error_set(error, -EINVAL, "%s=%s is not a number from 0 to %" PRIu64, key, value,
                             max);
    *ret_number = number;
    return 0;
}

static int parse_argument(const char *key, const char *value, Options *options, MshError *error)
{
    uint64_t percent;
    int r;

    if (strcmp(key, "socket") == 0)
        return parse_text(key, value, options->socket_path, sizeof(options->socket_path), error);
    if (strcmp(key, "group") == 0)
        return parse_text(key, value, options->group, sizeof(options->group), error);
    if (strcmp(key, "scan-rate") == 0)
        return parse_number(key, value, MSH_RATE_UNLIMITED, &options->scan_rate_pages, error);
    if (strcmp(key, "mode") == 0) {
        if (msh_mode_parse(value, &options->mode) != 0)
            return msh_error_set(error, -EINVAL, "mode=%s is none of off, zero, content", value);
        return 0;
    }
    if (strcmp(key, "cpu-limit") == 0) {
        r = parse_number(key, value, MSH_CPU_LIMIT_PERCENT_MAX, &percent, error);
        if (r == 0)
            options->cpu_limit_percent = (uint32_t)percent;
        return r;
    }
    if (strcmp(key, "eager") == 0) {
        options->is_eager = strcmp(value, "on") == 0;
        if (!options->is_eager && strcmp(value, "off") != 0)
            return msh_error_set(error, -EINVAL, "eager=%s is none of on, off", value);
        return 0;
    }
    return msh_error_set(error, -EINVAL,
                         "unknown argument '%s' (known: socket, group, mode, scan-rate, cpu-limit, eager)",
                         key);
}

static int parse_arguments(int count, char **arguments, Options *options, MshError *error)
{
    char key[32];
    int r = 0;

    for (int i = 0; i < count && r == 0; i++) {
        const char *equals = strchr(arguments[i], '=');
        size_t length = equals == NULL ? strlen(arguments[i]) : (size_t)(equals - arguments[i]);

        snprintf(key, sizeof(key), "%.*s", (int)length, arguments[i]);
        r = parse_argument(key, equals == NULL ? "" : equals + 1, options, error);
    }
    if (r == 0 && options->socket_path[0] == '\0')
        snprintf(options->socket_path, sizeof(options->socket_path), SOCKET_DIRECTORY "/%s.sock",
                 options->group);
    return r;
}

/*
 * Life cycle
 */

static void on_machine_ready(QemuNotifier *notifier, void *data)
{
    MshError error = {0};

    (void)notifier;
    (void)data;
    if (msh_guard_start(guard, &error) < 0)
        say("this guest does not share: ", &error);
}

/* Registered at install, so it runs before the clean-up of everything that was there before. */
static void on_exit_of_process(void)
{
    if (getpid() == owner) /* not in a forked child */
        msh_guard_stop(guard);
}

static void on_device_realized(QemuDeviceListener *listener, DeviceState *device)
{
    (void)listener;
    (void)device;
    msh_guard_on_device(guard);
}

/* Called by engine threads, which begin after the guard has been made. */
static bool nothing_pinned(void *opaque)
{
    (void)opaque;
    return msh_guard_nothing_pinned(guard);
}

static int make_engine(const Options *options, MshError *error)
{
    const char *name = qemu.qemu_get_vm_name();
    char guest_name[MSH_NAME_BYTES];

    if (name != NULL)
        snprintf(guest_name, sizeof(guest_name), "%s", name);
    const MshConfig config = {
        .socket_path = options->socket_path,
        .group = options->group,
        .guest_name = name == NULL ? NULL : guest_name,
        .mode = options->mode,
        .scan_rate_pages = options->scan_rate_pages,
        .cpu_limit_percent = options->cpu_limit_percent,
        .is_eager = options->is_eager,
        .nothing_pinned = nothing_pinned,
        .patience_ns = PATIENCE_NS,
    };
    return msh_engine_new(&config, &engine, error);
}

static int share(const Options *options, MshError *error)
{
    static QemuNotifier machine_ready = {.notify = on_machine_ready};
    static QemuDeviceListener devices = {.realize = on_device_realized};
    int r = make_engine(options, error);

    if (r == -EINVAL)
        return r;
    if (r < 0) {
        say("this guest does not share: ", error);
        return msh_qom_publish_refusal(options->group, error->text, error);
    }
    guard = msh_guard_new(engine, options->mode);
    r = msh_qom_publish(engine, guard, error);
    if (r < 0)
        return r;
    owner = getpid();
    atexit(on_exit_of_process);
    qemu.qemu_add_machine_init_done_notifier(&machine_ready);
    qemu.device_listener_register(&devices);
    return 0;
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info,
                                                               int argc, char **argv);

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    static bool installed;
    Options options = {
        .group = "default", .mode = MSH_MODE_CONTENT, .scan_rate_pages = SCAN_RATE_DEFAULT};
    MshError error = {0};
    int r;

    (void)id;
    (void)info;
    r = installed ? msh_error_set(&error, -EINVAL, "the plugin is given twice")
                  : parse_arguments(argc, argv, &options, &error);
    if (r < 0) {
        say("", &error);
        return 1;
    }
    if (msh_qemu_abi_load(&error) < 0) {
        say("this guest does not share: ", &error);
        return 0;
    }
    if (share(&options, &error) < 0) {
        say("", &error);
        return 1;
    }
    installed = true;
    return 0;
}
