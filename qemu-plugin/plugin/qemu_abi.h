/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The symbols of the host QEMU, each looked up by name: the only door to QEMU.
 *
 * What holds: types are opaque and no structure's layout is relied upon, with two exceptions, the
 * notifier and the listener below. One binary so serves every QEMU whose functions have these prototypes
 * (`./dev compat` tries 7.2, 10.0 and 11.1). A symbol that is missing is named in the refusal;
 * nothing is called before msh_qemu_abi_load() has found all of them.
 *
 * Threads: `qemu` is written once, at plugin install, and only read later. Everything in it is for
 * the main loop, under QEMU's big lock.
 */
#ifndef MEMSHARE_PLUGIN_QEMU_ABI_H
#define MEMSHARE_PLUGIN_QEMU_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memshare/error.h"

typedef struct DeviceState DeviceState;
typedef struct Error Error;
typedef struct GenericList GenericList;
typedef struct MemoryRegion MemoryRegion;
typedef struct Object Object;
typedef struct ObjectClass ObjectClass;
typedef struct ObjectProperty ObjectProperty;
typedef struct QEnumLookup QEnumLookup;
typedef struct RAMBlock RAMBlock;
typedef struct Visitor Visitor;

typedef int RamBlockVisit(RAMBlock *block, void *opaque);
typedef int ObjectVisit(Object *object, void *opaque);
typedef void PropertyAccess(Object *object, Visitor *visitor, const char *name, void *opaque,
                            Error **errp);
typedef void PropertyRelease(Object *object, const char *name, void *opaque);

/* The callback comes first and list links follow, as in every QEMU since notifiers exist; the spare
 * words are for links we do not look at. Never freed: QEMU keeps it in a list. */
typedef struct QemuNotifier {
    void (*notify)(struct QemuNotifier *notifier, void *data);
    void *links[6];
} QemuNotifier;

/* Likewise, with three callbacks. */
typedef struct QemuDeviceListener {
    void (*realize)(struct QemuDeviceListener *listener, DeviceState *device);
    void (*unrealize)(struct QemuDeviceListener *listener, DeviceState *device);
    void (*hide_device)(void);
    void *links[6];
} QemuDeviceListener;

/* Not 0, with an error: it shall not start. 7.2 starts it all the same. */
typedef int MigrationNotify(QemuNotifier *notifier, void *event, Error **errp);

/* X(return type, name, parameters) */
#define QEMU_FUNCTIONS(X)                                                                          \
    X(void, bdrv_drain_all_begin, (void))                                                          \
    X(void, bdrv_drain_all_end, (void))                                                            \
    X(void, device_listener_register, (QemuDeviceListener * listener))                             \
    X(void, error_setg_internal,                                                                   \
      (Error * *errp, const char *source, int line, const char *function, const char *format,      \
       ...))                                                                                       \
    X(MemoryRegion *, memory_region_from_host, (void *address, uint64_t *ret_offset))              \
    X(Object *, memory_region_owner, (MemoryRegion * region))                                      \
    X(void, memory_region_ref, (MemoryRegion * region))                                            \
    X(void, memory_region_unref, (MemoryRegion * region))                                          \
    X(bool, migration_in_bg_snapshot, (void))                                                      \
    X(bool, migration_in_incoming_postcopy, (void))                                                \
    X(int, object_child_foreach_recursive, (Object * root, ObjectVisit * visit, void *opaque))     \
    X(ObjectClass *, object_class_by_name, (const char *type_name))                                \
    X(Object *, object_dynamic_cast, (Object * object, const char *type_name))                     \
    X(char *, object_get_canonical_path, (const Object *object))                                   \
    X(Object *, object_get_objects_root, (void))                                                   \
    X(Object *, object_get_root, (void))                                                           \
    X(const char *, object_get_typename, (const Object *object))                                   \
    X(Object *, object_new, (const char *type_name))                                               \
    X(ObjectProperty *, object_property_add,                                                       \
      (Object * object, const char *name, const char *type, PropertyAccess *get,                   \
       PropertyAccess *set, PropertyRelease *release, void *opaque))                               \
    X(ObjectProperty *, object_property_add_child,                                                 \
      (Object * parent, const char *name, Object *child))                                          \
    X(ObjectProperty *, object_property_find, (Object * object, const char *name))                 \
    X(bool, object_property_get_bool, (Object * object, const char *name, Error **errp))           \
    X(Object *, object_property_get_link, (Object * object, const char *name, Error **errp))       \
    X(char *, object_property_get_str, (Object * object, const char *name, Error **errp))          \
    X(void, object_property_set_description,                                                       \
      (Object * object, const char *name, const char *description))                                \
    X(Object *, object_resolve_path_component, (Object * parent, const char *name))                \
    X(int, qapi_enum_parse,                                                                        \
      (const QEnumLookup *lookup, const char *name, int fallback, Error **errp))                   \
    X(void, qemu_add_machine_init_done_notifier, (QemuNotifier * notifier))                        \
    X(const char *, qemu_get_vm_name, (void))                                                      \
    X(int, qemu_ram_foreach_block, (RamBlockVisit * visit, void *opaque))                          \
    X(int, qemu_ram_get_fd, (RAMBlock * block))                                                    \
    X(void *, qemu_ram_get_host_addr, (RAMBlock * block))                                          \
    X(const char *, qemu_ram_get_idstr, (RAMBlock * block))                                        \
    X(uint64_t, qemu_ram_get_max_length, (RAMBlock * block))                                       \
    X(uint64_t, qemu_ram_get_used_length, (RAMBlock * block))                                      \
    X(bool, qemu_ram_is_shared, (RAMBlock * block))                                                \
    X(size_t, qemu_ram_pagesize, (RAMBlock * block))                                               \
    X(int, ram_block_discard_disable, (bool state))                                                \
    X(bool, ram_block_discard_is_disabled, (void))                                                 \
    X(int, ram_block_discard_require, (bool state))                                                \
    X(bool, runstate_check, (int state))                                                           \
    X(void, visit_end_list, (Visitor * visitor, void **list))                                      \
    X(void, visit_end_struct, (Visitor * visitor, void **object))                                  \
    X(bool, visit_check_list, (Visitor * visitor, Error * *errp))                                  \
    X(bool, visit_check_struct, (Visitor * visitor, Error * *errp))                                \
    X(bool, visit_start_list,                                                                      \
      (Visitor * visitor, const char *name, GenericList **list, size_t element_bytes,              \
       Error **errp))                                                                              \
    X(bool, visit_start_struct,                                                                    \
      (Visitor * visitor, const char *name, void **object, size_t object_bytes, Error **errp))     \
    X(bool, visit_type_str, (Visitor * visitor, const char *name, char **value, Error **errp))     \
    X(bool, visit_type_uint64, (Visitor * visitor, const char *name, uint64_t *value, Error **errp))

/* X(type, name). replay_mode is 0 when nothing is recorded or replayed. */
#define QEMU_VARIABLES(X)                                                                          \
    X(QEnumLookup, RunState_lookup)                                                                \
    X(int, replay_mode)

typedef struct QemuAbi {
#define X(type, name, parameters) type(*name) parameters;
    QEMU_FUNCTIONS(X)
#undef X
#define X(type, name) const type *name;
    QEMU_VARIABLES(X)
#undef X
    /* Calls the one function when an outgoing migration or snapshot is about to start, and when it has ended. */
    void (*migration_add_notifier)(QemuNotifier *notifier, MigrationNotify *notify);
} QemuAbi;

extern QemuAbi qemu;

/* Fills `qemu`. -ENOSYS counts the symbols that this QEMU does not have, and names as many as fit: `memshare
 * doctor` reads that line. */
int msh_qemu_abi_load(MshError *error);

#endif
