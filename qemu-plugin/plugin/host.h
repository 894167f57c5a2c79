/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the operating system says about this process that forbids sharing. No QEMU symbol.
 *
 * UFFDIO_MOVE refuses pages that are pinned, but cannot see pages that a kernel user merely
 * references (FOLL_GET). Such a user would go on writing to the moved page: a write lost (I1). The
 * users known to do so are found by the descriptors they need.
 *
 * Threads: any; may block in a file system that does not answer, so never on the main loop once the
 * guest runs.
 */
#ifndef MEMSHARE_PLUGIN_HOST_H
#define MEMSHARE_PLUGIN_HOST_H

#include <stdbool.h>

#include "memshare/error.h"
#include "memshare/stats.h"

typedef struct MshHostFacts {
    bool overcommit_strict; /* vm.overcommit_memory=2: MAP_NORESERVE is ignored */
    bool locked;            /* more memory is locked than a pool of secrets takes */
    bool nested_unpinned;   /* a KVM guest of a kernel whose nested virtualisation does not pin */
    bool vhost_scsi;        /* holds a descriptor of /dev/vhost-scsi */
    char unpinned_io[MSH_TEXT_BYTES /
                     2]; /* file open with O_DIRECT that might not pin; "" if none */
} MshHostFacts;

/* -errno when /proc cannot be read: then nothing is known and sharing must stop. */
int msh_host_facts(MshHostFacts *ret_facts, MshError *error);

/* Who may have pages of this process pinned, through a descriptor that is open now. */
typedef enum MshPinner {
    MSH_PINNER_NONE,
    MSH_PINNER_BLOCK_LAYER, /* QEMU's: not while that is drained */
    MSH_PINNER_KVM,         /* for what nested guests are made of; nothing where there are none */
    MSH_PINNER_UNKNOWN,
} MshPinner;

typedef struct MshPins {
    bool block_layer, kvm, unknown;
} MshPins;

/* Never blocks, looks afresh each time. Someone who opens a descriptor and starts I/O on guest memory
 * right after the look is missed. */
MshPins msh_host_pins(void);

/* Of a device in /dev. */
MshPinner msh_host_device_pinner(const char *path, bool is_block_device);

/* Whether an io_uring, as /proc/PID/fdinfo shows it, has neither buffers nor files registered. */
bool msh_host_ring_holds_nothing(const char *fdinfo_text);

/* Whether O_DIRECT on a file system of this statfs type pins the pages it reads into (or copies).
 * Unknown is no. */
bool msh_host_direct_io_pins(unsigned long file_system_type);

/* Whether KVM of that kernel release pins what a nested guest's control structures point to, or
 * follows them through its notifiers: since 6.13. */
bool msh_host_nested_pins(const char *kernel_release);

/* The "VmLck:" line of a /proc/PID/status text, in kB; 0 if there is none. */
unsigned long msh_host_locked_kb(const char *status_text);

#endif
