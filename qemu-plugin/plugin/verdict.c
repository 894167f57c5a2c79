/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "verdict.h"

#include <stdarg.h>
#include <stdio.h>

__attribute__((format(printf, 3, 4))) static void limit(MshVerdict *verdict, MshMode ceiling,
                                                        const char *format, ...)
{
    va_list arguments;

    verdict->ceiling = ceiling;
    va_start(arguments, format);
    vsnprintf(verdict->reason, sizeof(verdict->reason), format, arguments);
    va_end(arguments);
}

/* The first line that applies decides: what the owner wants, then what can never work, then what
 * may change while the guest runs, last what still allows zero pages. */
MshVerdict msh_verdict(const MshHostFacts *host, const MshQemuFacts *vm)
{
    MshVerdict verdict = {.ceiling = MSH_MODE_CONTENT, .hold = vm->needs_plain_ram};

    /* QEMU itself sets mem-merge=off for these. */
    if (vm->confidential)
        limit(&verdict, MSH_MODE_OFF, "confidential guest: its memory is encrypted or private");
    else if (vm->mem_merge_off)
        limit(&verdict, MSH_MODE_OFF, "the machine was started with mem-merge=off");
    else if (vm->replaying)
        limit(&verdict, MSH_MODE_OFF, "the machine is recorded or replayed");
    else if (host->overcommit_strict)
        limit(&verdict, MSH_MODE_OFF, "vm.overcommit_memory is 2 on this host");
    else if (host->locked)
        limit(&verdict, MSH_MODE_OFF, "memory is locked (mem-lock=on)");
    else if (host->vhost_scsi)
        limit(&verdict, MSH_MODE_OFF, "vhost-scsi writes to guest memory without pinning it");
    else if (host->nested_unpinned && vm->nesting)
        limit(&verdict, MSH_MODE_OFF,
              "nested virtualisation needs a host kernel of 6.13 or newer (or a CPU without vmx, "
              "svm)");
    else if (host->unpinned_io[0] != '\0')
        limit(&verdict, MSH_MODE_OFF,
              "%s is open with O_DIRECT on a file system not known to pin memory",
              host->unpinned_io);
    else if (vm->discards_disabled)
        limit(&verdict, MSH_MODE_OFF,
              "a device needs RAM to stay in place (VFIO, vDPA or RDMA: discards are disabled)");
    else if (vm->incoming)
        limit(&verdict, MSH_MODE_OFF, "an incoming migration has not finished");
    else if (vm->ram_refusal[0] != '\0')
        limit(&verdict, MSH_MODE_OFF, "%s", vm->ram_refusal);
    else if (vm->virtio_mem)
        limit(&verdict, MSH_MODE_ZERO, "virtio-mem discards memory: zero pages only");
    else if (vm->free_page_reporting)
        limit(&verdict, MSH_MODE_ZERO, "free page reporting discards memory: zero pages only");
    return verdict;
}
