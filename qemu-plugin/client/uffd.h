/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A userfaultfd, behind named outcomes. The only file that issues its ioctls.
 *
 * Nobody reads fault messages in order to answer them: a thread that touches a missing page of a
 * registered range sleeps in the kernel until msh_uffd_wake() of its address. Threads: the caller's
 * lock.
 */
#ifndef MSH_UFFD_H
#define MSH_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "memshare/error.h"
#include "pagemap.h"

typedef struct MshUffd {
    int fd; /* -1: none */
} MshUffd;

enum {
    MSH_E_UFFD_BUSY = 1,    /* a page is pinned, shared by fork or KSM, or under writeback */
    MSH_E_UFFD_AGAIN = 2,   /* the address space is changing; try again */
    MSH_E_UFFD_MISSING = 3, /* no page at the source */
    MSH_E_UFFD_EXISTS = 4,  /* a page at the destination already */
    MSH_E_UFFD_FOREIGN = 5, /* somebody else's userfaultfd has the range, or a part of it. Nothing was done, and
                               nothing may be undone: Linux before 6.18 lets anybody unregister it */
};

typedef enum MshUffdMode {
    MSH_UFFD_MISSING_PAGES = 1,
    MSH_UFFD_WRITES = 2,
} MshUffdMode;

typedef enum MshUffdPurpose {
    /* Write protection is asynchronous: nobody ever waits for it, it tells afterwards who wrote. */
    MSH_UFFD_FOR_WINDOWS,
    /* Writers to a protected page sleep. */
    MSH_UFFD_FOR_REBUILD,
} MshUffdPurpose;

/* device_fd: an open /dev/userfaultfd, or -1 to open it here.
 * -ENOSYS: the kernel lacks a feature; error names it. */
int msh_uffd_open(MshUffd *uffd, int device_fd, MshUffdPurpose purpose, MshError *error);
void msh_uffd_close(MshUffd *uffd);

/* modes: a set of MshUffdMode. 0 · MSH_E_UFFD_FOREIGN · -errno: part of the range may be registered. */
int msh_uffd_register(const MshUffd *uffd, void *start, size_t length_bytes, unsigned modes);
int msh_uffd_unregister(const MshUffd *uffd, void *start, size_t length_bytes);

/* Moves pages without waking who waits. 0, or MSH_E_UFFD_* / -errno; in every case *ret_moved_bytes
 * says how many bytes, from the start, have moved. Nobody else may fill the destination or empty
 * the source meanwhile: that is how pages are found that the kernel has moved without saying so. */
int msh_uffd_move(const MshUffd *uffd, const MshPagemap *pagemap, void *destination,
                  const void *source, size_t length_bytes, size_t *ret_moved_bytes);

/* Copies bytes into missing pages, without waking. 0 · MSH_E_UFFD_AGAIN · MSH_E_UFFD_EXISTS ·
 * -errno */
int msh_uffd_copy(const MshUffd *uffd, void *destination, const void *source, size_t length_bytes);

/* Makes writers to the range sleep, or lets the next ones pass. */
int msh_uffd_protect(const MshUffd *uffd, void *start, size_t length_bytes, bool on);

/* Wakes all who wait in the range, also where it is registered no more. */
int msh_uffd_wake(const MshUffd *uffd, void *start, size_t length_bytes);

/* Reads and drops the messages that wait now; returns how many were page faults. Never blocks. */
unsigned msh_uffd_discard_events(const MshUffd *uffd);

#endif
