/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Looks up QEMU's symbols, and tells QEMU the plugin API version it wants to hear.
 *
 * The plugin uses nothing of the plugin API but its two entry points, which never changed. So any
 * version is true of it, and it names one that the host accepts.
 */
#include "qemu_abi.h"

#include <dlfcn.h>
#include <errno.h>

QemuAbi qemu;

/* Read by QEMU after dlopen, so after the constructor. */
__attribute__((visibility("default"))) extern int qemu_plugin_version;
int qemu_plugin_version;

static bool host_has(const char *symbol)
{
    return dlsym(RTLD_DEFAULT, symbol) != NULL;
}

/* A host accepts its own version and some older ones: 7.2 takes 0 to 1, 10.0 takes 2 to 4, 11.1
 * only
 * 7. Which host it is shows in a function that it has and the one before has not. */
__attribute__((constructor)) static void choose_plugin_version(void)
{
    if (host_has("qemu_plugin_set_pc"))
        qemu_plugin_version = 7;
    else if (host_has("qemu_plugin_num_vcpus"))
        qemu_plugin_version = 2;
    else
        qemu_plugin_version = 1;
}

static int look_up(const char *symbol, void *ret_pointer, MshError *error)
{
    void *address = dlsym(RTLD_DEFAULT, symbol);

    if (address == NULL)
        return msh_error_set(error, -ENOSYS, "this qemu has no symbol %s", symbol);
    /* A data pointer may be copied into a function pointer on every system with dlsym. */
    *(void **)ret_pointer = address;
    return 0;
}

/* 7.2 asks for no answer. */
static void (*add_state_change_notifier)(QemuNotifier *notifier);
static MigrationNotify *state_change_notify;

static void notify_of_state_change(QemuNotifier *notifier, void *event)
{
    state_change_notify(notifier, event, NULL);
}

static void add_old_notifier(QemuNotifier *notifier, MigrationNotify *notify)
{
    notifier->notify = notify_of_state_change;
    state_change_notify = notify;
    add_state_change_notifier(notifier);
}

static int look_up_migration_notifier(QemuAbi *found, MshError *error)
{
    if (look_up("migration_add_notifier", &found->migration_add_notifier, error) == 0)
        return 0;
    found->migration_add_notifier = add_old_notifier;
    return look_up("add_migration_state_change_notifier", &add_state_change_notifier, error);
}

int msh_qemu_abi_load(MshError *error)
{
    QemuAbi found = {0};
    int r;

#define X(type, name, parameters)                                                                  \
    r = look_up(#name, &found.name, error);                                                        \
    if (r < 0)                                                                                     \
        return r;
    QEMU_FUNCTIONS(X)
#undef X
    r = look_up("RunState_lookup", &found.RunState_lookup, error);
    if (r < 0)
        return r;
    r = look_up("replay_mode", &found.replay_mode, error);
    if (r < 0)
        return r;
    r = look_up_migration_notifier(&found, error);
    if (r < 0)
        return r;
    qemu = found;
    return 0;
}
