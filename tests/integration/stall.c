/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lets an engine in QEMU get stuck (LD_PRELOAD). While the file exists that MEMSHARE_STALL names, the thread
 * that scans does not return from its next look at page tables, for which it holds the engine's memory
 * lock. That it is there it tells by another file, its name with ".reached".
 */
/* These definitions are those of the 64-bit names as well. */
#undef _FILE_OFFSET_BITS
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel_abi.h"

static void stall(const char *path)
{
    char reached[256];
    snprintf(reached, sizeof reached, "%s.reached", path);
    close(open(reached, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    while (access(path, F_OK) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    const char *path = getenv("MEMSHARE_STALL");
    char name[16] = "";
    if (request == MSH_PAGEMAP_SCAN && path && access(path, F_OK) == 0 &&
        prctl(PR_GET_NAME, name) == 0 && strcmp(name, "memshare-scan") == 0)
        stall(path);
    return (int)syscall(SYS_ioctl, fd, request, argument);
}
