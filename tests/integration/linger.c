/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keeps an engine's windows open for longer (LD_PRELOAD), so that a guest's accesses meet them more often: each
 * move of pages takes as many nanoseconds more as MEMSHARE_LINGER_NS says, once the pages have moved.
 */
/* These definitions are those of the 64-bit names as well. */
#undef _FILE_OFFSET_BITS
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel_abi.h"

static struct timespec linger;

__attribute__((constructor)) static void begin(void)
{
    const char *ns = getenv("MEMSHARE_LINGER_NS");
    linger.tv_nsec = ns ? atol(ns) : 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int result = (int)syscall(SYS_ioctl, fd, request, argument);
    if (request == MSH_UFFDIO_MOVE) {
        int error = errno;
        nanosleep(&linger, NULL);
        errno = error;
    }
    return result;
}
