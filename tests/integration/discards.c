/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A QEMU plugin that stands for a device which needs RAM to stay in place (VFIO, vDPA): it disables RAM
 * discards, or tries to, as such a device does when it starts.
 *
 * The property `discards-disabled` of /objects: 1 disables them once, 0 enables them again; an error
 * says that QEMU would not. `discards-are-disabled` is QEMU's own word, whoever did it.
 */
#include <errno.h>
#include <string.h>

#include "qemu_abi.h"

#define fail(errp, ...) qemu.error_setg_internal(errp, __FILE__, __LINE__, __func__, __VA_ARGS__)

static uint64_t disabled;

static void get_disabled(Object *object, Visitor *visitor, const char *name, void *opaque,
                         Error **errp)
{
    (void)object;
    (void)opaque;
    uint64_t value = disabled;
    qemu.visit_type_uint64(visitor, name, &value, errp);
}

static void set_disabled(Object *object, Visitor *visitor, const char *name, void *opaque,
                         Error **errp)
{
    (void)object;
    (void)opaque;
    uint64_t value;
    if (!qemu.visit_type_uint64(visitor, name, &value, errp) || value == disabled)
        return;
    int r = qemu.ram_block_discard_disable(value != 0);
    if (r < 0)
        fail(errp, "discarding of RAM cannot be disabled: %s", strerror(-r));
    else
        disabled = value;
}

static void get_are_disabled(Object *object, Visitor *visitor, const char *name, void *opaque,
                             Error **errp)
{
    (void)object;
    (void)opaque;
    uint64_t value = qemu.ram_block_discard_is_disabled();
    qemu.visit_type_uint64(visitor, name, &value, errp);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info,
                                                               int argc, char **argv);

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)id;
    (void)info;
    (void)argc;
    (void)argv;
    if (msh_qemu_abi_load(NULL) < 0)
        return 1;
    Object *objects = qemu.object_get_objects_root();
    qemu.object_property_add(objects, "discards-disabled", "uint64", get_disabled, set_disabled, NULL,
                             NULL);
    qemu.object_property_add(objects, "discards-are-disabled", "uint64", get_are_disabled, NULL, NULL,
                             NULL);
    return 0;
}
