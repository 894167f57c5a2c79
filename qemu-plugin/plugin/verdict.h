/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From facts about this guest to how far it may share. Pure: no QEMU, no I/O, no clock.
 *
 * A reason reads as the second half of "this guest does not share: ..." (or "... shares zero pages
 * only: ..."), and names what the operator would have to change.
 */
#ifndef MEMSHARE_PLUGIN_VERDICT_H
#define MEMSHARE_PLUGIN_VERDICT_H

#include "host.h"
#include "memshare/stats.h"

typedef struct MshQemuFacts {
    /* Settled when the machine is built. */
    bool mem_merge_off; /* machine property mem-merge=off: the owner said no */
    bool replaying;     /* recording or replaying */
    bool confidential;  /* SEV, TDX, protected virtualisation */
    /* Change while the guest runs. */
    bool nesting;             /* a virtual CPU offers VMX or SVM */
    bool incoming;            /* state of another host is still arriving */
    bool discards_disabled;   /* VFIO, vDPA, RDMA: somebody needs RAM to stay where it is */
    bool virtio_mem;          /* discards RAM that it expects to read as zero */
    bool free_page_reporting; /* so does a balloon that reports free pages */
    bool needs_plain_ram;     /* background snapshot: needs userfaultfd itself */
    /* Why no RAM block can be registered, or none could; "" if one is. */
    char ram_refusal[MSH_TEXT_BYTES];
} MshQemuFacts;

typedef struct MshVerdict {
    MshMode ceiling;
    bool hold;
    char reason[MSH_TEXT_BYTES]; /* "" exactly when ceiling is MSH_MODE_CONTENT */
} MshVerdict;

MshVerdict msh_verdict(const MshHostFacts *host, const MshQemuFacts *vm);

#endif
