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
#include <stdio.h>
#include <string.h>

QemuAbi qemu;

/* Read by QEMU after dlopen, so after the constructor. */
__attribute__((visibility("default"))) extern int qemu_plugin_version;
int qemu_plugin_version;

static bool host_has(const char *symbol)
{
    return dlsym(RTLD_DEFAULT, symbol) != NULL;
}

/* A host accepts its own version and some older ones: 7.2 takes 0 to 1, 10.0 takes 2 to 4, 11.1 only
 * 7. Which host it is shows in a function that it has and the one before has not. One that takes none
 * of them refuses the plugin by itself, before anything of it runs but this. */
__attribute__((constructor)) static void choose_plugin_version(void)
{
    if (host_has("qemu_plugin_set_pc"))
        qemu_plugin_version = 7;
    else if (host_has("qemu_plugin_num_vcpus"))
        qemu_plugin_version = 2;
    else
        qemu_plugin_version = 1;
}

typedef struct Missing {
    unsigned count;
    char names[MSH_ERROR_BYTES - 80]; /* cut off where it is full */
} Missing;

static void *look_up(const char *symbol, Missing *missing)
{
    void *address = dlsym(RTLD_DEFAULT, symbol);

    if (address == NULL) {
        size_t used = strlen(missing->names);

        snprintf(missing->names + used, sizeof(missing->names) - used, "%s%s",
                 missing->count == 0 ? "" : ", ", symbol);
        missing->count++;
    }
    return address;
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

static void look_up_migration_notifier(QemuAbi *found, Missing *missing)
{
    *(void **)&add_state_change_notifier =
        dlsym(RTLD_DEFAULT, "add_migration_state_change_notifier");
    if (add_state_change_notifier != NULL) {
        found->migration_add_notifier = add_old_notifier;
        return;
    }
    *(void **)&found->migration_add_notifier = look_up("migration_add_notifier", missing);
    /* 8.2 has that name too, but calls with two arguments: an error would be written to nowhere. Since 9.0 there are
     * three, and this. */
    look_up("migration_add_notifier_mode", missing);
}

int msh_qemu_abi_load(MshError *error)
{
    QemuAbi found;
    Missing missing = {0};

    /* A data pointer may be copied into a function pointer on every system with dlsym. */
#define X(type, name, parameters) *(void **)&found.name = look_up(#name, &missing);
    QEMU_FUNCTIONS(X)
#undef X
#define X(type, name) found.name = look_up(#name, &missing);
    QEMU_VARIABLES(X)
#undef X
    look_up_migration_notifier(&found, &missing);
    if (missing.count > 0)
        return msh_error_set(error, -ENOSYS,
                             "this qemu lacks %u of the symbols that memshare calls: %s%s",
                             missing.count, missing.names,
                             strlen(missing.names) == sizeof(missing.names) - 1 ? "..." : "");
    qemu = found;
    return 0;
}
