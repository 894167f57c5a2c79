/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kernel_abi.h"
#include "memshare/units.h"

int msh_uffd_open(MshUffd *uffd, int device_fd, MshUffdPurpose purpose, MshError *error)
{
    int device = device_fd;
    if (device < 0) {
        device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device < 0)
            return msh_error_set(error, -errno, "/dev/userfaultfd cannot be opened: %s",
                                 strerror(errno));
    }
    int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int saved_errno = errno;
    if (device != device_fd)
        close(device);
    if (fd < 0)
        return msh_error_set(error, -saved_errno, "no userfaultfd from /dev/userfaultfd: %s",
                             strerror(saved_errno));

    struct uffdio_api api = {.api = UFFD_API,
                             .features =
                                 MSH_UFFD_FEATURE_MOVE | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                 UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                 (purpose == MSH_UFFD_FOR_WINDOWS ? MSH_UFFD_FEATURE_WP_ASYNC : 0)};
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return msh_error_set(error, -ENOSYS,
                             "this kernel's userfaultfd cannot move pages (UFFDIO_MOVE, Linux 6.8) "
                             "or write-protect shared memory (5.19)");
    }
    uffd->fd = fd;
    return 0;
}

void msh_uffd_close(MshUffd *uffd)
{
    if (uffd->fd >= 0)
        close(uffd->fd);
    uffd->fd = -1;
}

int msh_uffd_register(const MshUffd *uffd, void *start, size_t length_bytes, unsigned modes)
{
    struct uffdio_register request = {
        .range = {.start = (uintptr_t)start, .len = length_bytes},
        .mode = ((modes & MSH_UFFD_MISSING_PAGES) ? UFFDIO_REGISTER_MODE_MISSING : 0) |
                ((modes & MSH_UFFD_WRITES) ? UFFDIO_REGISTER_MODE_WP : 0)};
    if (ioctl(uffd->fd, UFFDIO_REGISTER, &request) == 0)
        return 0;
    return errno == EBUSY ? MSH_E_UFFD_FOREIGN : -errno;
}

int msh_uffd_unregister(const MshUffd *uffd, void *start, size_t length_bytes)
{
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length_bytes};
    return ioctl(uffd->fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

static int outcome(int error_number)
{
    switch (error_number) {
    case EBUSY:
        return MSH_E_UFFD_BUSY;
    case EAGAIN:
        return MSH_E_UFFD_AGAIN;
    case ENOENT:
        return MSH_E_UFFD_MISSING;
    case EEXIST:
        return MSH_E_UFFD_EXISTS;
    default:
        return -error_number;
    }
}

/* May wait, may not fail: on its answer hangs whether a page is kept. */
static bool is_empty(const MshPagemap *pagemap, const void *page)
{
    uint8_t presence;
    while (msh_pagemap_scan(pagemap, page, 1, false, &presence) < 0)
        sched_yield();
    return presence == 0;
}

/* How many bytes were moved, though the kernel said that none were. Linux 6.18 starts over when a
 * page table entry has changed under its hands, moves one page or a row of them, but still has that
 * EAGAIN in mind: it tries the same page once more, finds it at the destination, and reports EEXIST
 * and nothing of what it did (mm/userfaultfd.c, move_pages(); 7.2 clears the error). I1 */
static size_t unsaid_bytes(const MshPagemap *pagemap, const uint8_t *destination,
                           const uint8_t *source, size_t length_bytes)
{
    size_t at = 0;
    while (at < length_bytes && is_empty(pagemap, source + at) &&
           !is_empty(pagemap, destination + at))
        at += MSH_PAGE_BYTES;
    return at;
}

int msh_uffd_move(const MshUffd *uffd, const MshPagemap *pagemap, void *destination,
                  const void *source, size_t length_bytes, size_t *ret_moved_bytes)
{
    /* The kernel may leave the move field alone when it fails early: zero it before. */
    struct msh_uffdio_move move = {.dst = (uintptr_t)destination,
                                   .src = (uintptr_t)source,
                                   .len = length_bytes,
                                   .mode = MSH_UFFDIO_MOVE_MODE_DONTWAKE,
                                   .move = 0};
    int result = ioctl(uffd->fd, MSH_UFFDIO_MOVE, &move) < 0 ? errno : 0;
    size_t moved_bytes = move.move > 0 ? (size_t)move.move : 0;
    if (result == EEXIST || (result && moved_bytes)) {
        size_t unsaid =
            unsaid_bytes(pagemap, (const uint8_t *)destination + moved_bytes,
                         (const uint8_t *)source + moved_bytes, length_bytes - moved_bytes);
        moved_bytes += unsaid;
        if (unsaid)
            result = EAGAIN; /* for the rest */
    }
    *ret_moved_bytes = moved_bytes;
    if (moved_bytes == length_bytes)
        return 0;
    return outcome(result ? result : EAGAIN);
}

int msh_uffd_copy(const MshUffd *uffd, void *destination, const void *source, size_t length_bytes)
{
    struct uffdio_copy copy = {.dst = (uintptr_t)destination,
                               .src = (uintptr_t)source,
                               .len = length_bytes,
                               .mode = UFFDIO_COPY_MODE_DONTWAKE};
    return ioctl(uffd->fd, UFFDIO_COPY, &copy) < 0 ? outcome(errno) : 0;
}

int msh_uffd_protect(const MshUffd *uffd, void *start, size_t length_bytes, bool on)
{
    struct uffdio_writeprotect request = {.range = {.start = (uintptr_t)start, .len = length_bytes},
                                          .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP
                                                     : UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
    for (;;) {
        if (ioctl(uffd->fd, UFFDIO_WRITEPROTECT, &request) == 0)
            return 0;
        if (errno != EAGAIN)
            return -errno;
    }
}

int msh_uffd_wake(const MshUffd *uffd, void *start, size_t length_bytes)
{
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length_bytes};
    return ioctl(uffd->fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

unsigned msh_uffd_discard_events(const MshUffd *uffd)
{
    struct uffd_msg messages[16];
    unsigned faults = 0;
    for (;;) {
        ssize_t got = read(uffd->fd, messages, sizeof messages);
        if (got <= 0)
            return faults;
        size_t count = (size_t)got / sizeof messages[0];
        for (size_t i = 0; i < count; i++)
            faults += messages[i].event == UFFD_EVENT_PAGEFAULT;
        if (count < sizeof messages / sizeof messages[0])
            return faults;
    }
}
