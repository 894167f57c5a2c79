/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ram.h"

#include <errno.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

#include "qemu_abi.h"

/* Firmware and option ROMs are below, guest RAM is above. */
#define BLOCK_BYTES_MIN (1ull << 20)

typedef enum BlockState {
    BLOCK_FOUND,      /* seen, shareable, not registered yet */
    BLOCK_REGISTERED, /* with the engine; a reference is held on region */
    BLOCK_FAILED,     /* the engine would not have it; not tried again */
} BlockState;

typedef struct Block {
    LIST_ENTRY(Block) link;
    BlockState state;
    bool seen; /* in the current survey */
    void *address;
    uint64_t length_bytes;
    MemoryRegion *region;
    char failure[MSH_TEXT_BYTES];
} Block;

struct MshRam {
    MshEngine *engine;
    LIST_HEAD(, Block) blocks;
    /* Of the current survey: the largest block that cannot be shared, and why. */
    uint64_t refused_bytes;
    char refusal[MSH_TEXT_BYTES];
};

MshRam *msh_ram_new(MshEngine *engine)
{
    MshRam *ram = g_new0(MshRam, 1);

    ram->engine = engine;
    LIST_INIT(&ram->blocks);
    return ram;
}

/* A memory backend that is no longer in the object tree was deleted, and lives by our reference
 * only. */
static bool is_deleted(Object *backend)
{
    char *path = qemu.object_get_canonical_path(backend);
    bool deleted = path == NULL;

    g_free(path);
    return deleted;
}

static bool has_memory_policy(Object *backend)
{
    if (qemu.object_property_find(backend, "policy") == NULL)
        return false; /* a QEMU without NUMA support */
    char *policy = qemu.object_property_get_str(backend, "policy", NULL);
    bool set = policy == NULL || strcmp(policy, "default") != 0;

    g_free(policy);
    return set;
}

/* NULL if the block can be shared. */
static const char *why_not(RAMBlock *block, Object *backend)
{
    if (qemu.qemu_ram_pagesize(block) != MSH_PAGE_BYTES)
        return "is on hugetlbfs";
    if (qemu.qemu_ram_is_shared(block))
        return "is shared with other processes (share=on)";
    if (qemu.qemu_ram_get_fd(block) >= 0)
        return "is backed by a file";
    if (!qemu.object_property_get_bool(backend, "merge", NULL))
        return "has merge=off";
    if (has_memory_policy(backend))
        return "has a memory policy (host-nodes)";
    return NULL;
}

static void refuse(MshRam *ram, uint64_t length_bytes, const char *name, const char *reason)
{
    if (length_bytes < ram->refused_bytes)
        return;
    ram->refused_bytes = length_bytes;
    snprintf(ram->refusal, sizeof(ram->refusal), "RAM block %.40s %.138s", name, reason);
}

static Object *backend_of(MemoryRegion *region)
{
    Object *owner = region == NULL ? NULL : qemu.memory_region_owner(region);

    return owner == NULL ? NULL : qemu.object_dynamic_cast(owner, "memory-backend");
}

/* Called for each RAM block. QEMU has marked all it may grow to. Again at each survey: where there is no mark any
 * more the kernel has nothing to do. */
static int unmark_outside(RAMBlock *ram_block, void *opaque)
{
    void *address = qemu.qemu_ram_get_host_addr(ram_block);
    uint64_t offset;

    (void)opaque;
    if (address != NULL && backend_of(qemu.memory_region_from_host(address, &offset)) == NULL)
        madvise(address, qemu.qemu_ram_get_max_length(ram_block), MADV_UNMERGEABLE);
    return 0;
}

static Block *find(MshRam *ram, const void *address)
{
    Block *block;

    LIST_FOREACH(block, &ram->blocks, link)
    if (block->address == address)
        return block;
    return NULL;
}

/* Called for each RAM block in an RCU critical section: only looks and takes references. */
static int survey_block(RAMBlock *ram_block, void *opaque)
{
    MshRam *ram = opaque;
    void *address = qemu.qemu_ram_get_host_addr(ram_block);
    uint64_t length_bytes = qemu.qemu_ram_get_used_length(ram_block);
    const char *name = qemu.qemu_ram_get_idstr(ram_block);
    uint64_t offset;

    if (address == NULL || length_bytes < BLOCK_BYTES_MIN)
        return 0;
    MemoryRegion *region = qemu.memory_region_from_host(address, &offset);
    Object *backend = backend_of(region);
    if (backend == NULL || is_deleted(backend))
        return 0;

    const char *reason = why_not(ram_block, backend);
    if (reason != NULL) {
        refuse(ram, length_bytes, name, reason);
        return 0;
    }
    Block *block = find(ram, address);
    if (block == NULL) {
        block = g_new0(Block, 1);
        block->address = address;
        block->length_bytes = length_bytes;
        block->region = region;
        qemu.memory_region_ref(region);
        LIST_INSERT_HEAD(&ram->blocks, block, link);
    }
    block->seen = true;
    if (block->state == BLOCK_FAILED)
        refuse(ram, length_bytes, name, block->failure);
    return 0;
}

/* False: the engine is busy. The next survey tries again. */
static bool register_block(MshRam *ram, Block *block)
{
    MshError error = {0};

    /* KSM's pages are neither anonymous nor ours to move: give them back first. EINVAL, a kernel
     * without KSM, is as good. */
    madvise(block->address, block->length_bytes, MADV_UNMERGEABLE);
    int r = msh_engine_register(ram->engine, block->address, block->length_bytes, &error);
    if (r == -ETIMEDOUT)
        return false;
    if (r == 0) {
        block->state = BLOCK_REGISTERED;
        return true;
    }
    block->state = BLOCK_FAILED;
    snprintf(block->failure, sizeof(block->failure), "cannot be registered: %.110s", error.text);
    refuse(ram, block->length_bytes, "of the guest", block->failure);
    return true;
}

static void drop_block(MshRam *ram, Block *block)
{
    MshError error = {0};

    if (block->state == BLOCK_REGISTERED &&
        msh_engine_unregister(ram->engine, block->address, &error) < 0)
        return; /* still shared: the reference keeps it mapped, the next survey tries again */
    LIST_REMOVE(block, link);
    qemu.memory_region_unref(block->region);
    g_free(block);
}

void msh_ram_update(MshRam *ram, bool may_register, char ret_refusal[MSH_TEXT_BYTES])
{
    Block *block, *next;
    bool some = false;

    ram->refused_bytes = 0;
    snprintf(ram->refusal, sizeof(ram->refusal), "the machine has no RAM from a memory backend");
    LIST_FOREACH(block, &ram->blocks, link)
    block->seen = false;
    qemu.qemu_ram_foreach_block(survey_block, ram);
    if (may_register)
        qemu.qemu_ram_foreach_block(unmark_outside, NULL);

    for (block = LIST_FIRST(&ram->blocks); block != NULL; block = next) {
        next = LIST_NEXT(block, link);
        if (!block->seen) {
            drop_block(ram, block);
            continue;
        }
        if (block->state == BLOCK_FOUND && may_register)
            may_register = register_block(ram, block);
        some |= block->state != BLOCK_FAILED;
    }
    snprintf(ret_refusal, MSH_TEXT_BYTES, "%s", some ? "" : ram->refusal);
}
