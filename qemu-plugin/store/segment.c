/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One memfd. The order of its life is what makes it safe: map, seal, and only then can anybody else
 * have a descriptor.
 *
 * Memory comes by fallocate, some slots ahead: the file has no hole that a reader could touch, and what its
 * size covers is allocated, so that on a full host an error comes back where a mere ftruncate would end in
 * SIGBUS. One slot at a time, filling a page would take half as long again. They come into the page tables by
 * UFFDIO_CONTINUE: populating the mapping goes the way of a fault for each page.
 */
#include "segment.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memshare/protocol.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3; older headers lack it */
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

enum { SLOTS_AT_ONCE = 32 };

struct MshSegment {
    uint32_t id;
    int fd;
    int uffd; /* -1 where there is none: pages fault */
    uint32_t slots; /* it has when it is full */
    uint8_t
        *mapping; /* writable, the only such anywhere; NULL once nothing more will be filled in */
    uint32_t used_slots;
    uint32_t ready_slots; /* allocated: the file's size. Those beyond the used ones hold zeros */
    uint8_t staged[MSH_PAGE_BYTES];
};

static size_t length_bytes_of(const MshSegment *segment)
{
    return (size_t)msh_pages_to_bytes(segment->slots);
}

/* For our own faults alone, which needs no privilege. */
static int open_uffd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM};
    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Whatever is registered with it is so no more. */
static void close_uffd(MshSegment *segment)
{
    if (segment->uffd >= 0)
        close(segment->uffd);
    segment->uffd = -1;
}

/* Nothing more will be filled in: gives up the only writable mapping, and the size is final. */
static void close_for_good(MshSegment *segment)
{
    munmap(segment->mapping, length_bytes_of(segment));
    segment->mapping = NULL;
    close_uffd(segment);
    fcntl(segment->fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL); /* I4 */
}

static int make(MshSegment *segment, const char *group, MshError *error)
{
    char name[MSH_NAME_BYTES + 32];
    snprintf(name, sizeof(name), "memshare-%s-%u", group, segment->id);
    segment->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (segment->fd < 0)
        return msh_error_set(error, -errno, "store: memfd_create %s: %s", name, strerror(errno));
    /* A memfd starts open to all; a client could turn its read-only descriptor into a writable one
     * by way of /proc/self/fd, and grow the file. */
    if (fchmod(segment->fd, S_IRUSR) < 0)
        return msh_error_set(error, -errno, "store: fchmod %s: %s", name, strerror(errno));
    size_t length_bytes = length_bytes_of(segment);
    void *mapping = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0);
    if (mapping == MAP_FAILED)
        return msh_error_set(error, -errno, "store: mmap %s: %s", name, strerror(errno));
    segment->mapping = mapping;
    /* An engine without a broker fills segments inside a process that may fork: no child may write.
     */
    if (madvise(mapping, length_bytes, MADV_DONTFORK) < 0 ||
        madvise(mapping, length_bytes, MADV_DONTDUMP) < 0)
        return msh_error_set(error, -errno, "store: madvise %s: %s", name, strerror(errno));
    if (fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE) < 0) /* I3 */
        return msh_error_set(error, -errno, "store: cannot seal %s: %s", name, strerror(errno));
    segment->uffd = open_uffd();
    return 0;
}

int msh_segment_new(const char *group, uint32_t id, uint32_t slots, MshSegment **ret_segment,
                    MshError *error)
{
    MshSegment *segment = calloc(1, sizeof(*segment));
    if (!segment)
        return msh_error_set(error, -ENOMEM, "store: no memory for segment %u", id);
    segment->id = id;
    segment->slots = slots;
    segment->uffd = -1;
    int r = make(segment, group, error);
    if (r < 0) {
        msh_segment_free(segment);
        return r;
    }
    *ret_segment = segment;
    return 0;
}

MshSegment *msh_segment_free(MshSegment *segment)
{
    if (segment) {
        if (segment->mapping)
            munmap(segment->mapping, length_bytes_of(segment));
        close_uffd(segment);
        if (segment->fd >= 0)
            close(segment->fd);
        free(segment);
    }
    return NULL;
}

int msh_segment_stage(MshSegment *segment, const void *page, uint32_t *ret_position)
{
    if (!segment->mapping)
        return -ENOSPC;
    memcpy(segment->staged, page, MSH_PAGE_BYTES);
    *ret_position = segment->used_slots;
    return 0;
}

const void *msh_segment_staged(const MshSegment *segment)
{
    return segment->staged;
}

/* Enters allocated pages into the page tables. What it fails to enter faults later. */
static void enter(MshSegment *segment, off_t from_bytes, size_t length_bytes)
{
    struct uffdio_register whole = {
        .range = {.start = (uintptr_t)segment->mapping, .len = length_bytes_of(segment)},
        .mode = UFFDIO_REGISTER_MODE_MINOR};
    struct uffdio_continue pages = {
        .range = {.start = (uintptr_t)segment->mapping + (uintptr_t)from_bytes, .len = length_bytes},
        .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};
    if (segment->uffd < 0 || ioctl(segment->uffd, UFFDIO_REGISTER, &whole) < 0) {
        madvise(segment->mapping + from_bytes, length_bytes, MADV_POPULATE_WRITE);
        return;
    }
    (void)ioctl(segment->uffd, UFFDIO_CONTINUE, &pages);
    /* At once: the kernel may take a page out again before it is filled, and nobody would answer the fault. */
    if (ioctl(segment->uffd, UFFDIO_UNREGISTER, &whole.range) < 0)
        close_uffd(segment);
}

static int allocate(MshSegment *segment, uint32_t slots)
{
    off_t from_bytes = (off_t)msh_pages_to_bytes(segment->ready_slots);
    off_t length_bytes = (off_t)msh_pages_to_bytes(slots);
    int r;
    do {
        r = fallocate(segment->fd, 0, from_bytes, length_bytes) < 0 ? -errno : 0;
    } while (r == -EINTR);
    if (r < 0)
        return r;
    enter(segment, from_bytes, (size_t)length_bytes);
    segment->ready_slots += slots;
    return 0;
}

/* Makes the next slots ready, or what the host has room for: the next one. */
static int make_ready(MshSegment *segment)
{
    uint32_t left = segment->slots - segment->ready_slots;
    int r = allocate(segment, left < SLOTS_AT_ONCE ? left : SLOTS_AT_ONCE);
    return r < 0 ? allocate(segment, 1) : r;
}

int msh_segment_commit(MshSegment *segment)
{
    if (!segment->mapping)
        return -ENOSPC;
    int r = segment->used_slots == segment->ready_slots ? make_ready(segment) : 0;
    if (r < 0) {
        close_for_good(segment);
        return r;
    }
    /* I3: written once, before anyone is told of the position, and never again. */
    memcpy(segment->mapping + msh_pages_to_bytes(segment->used_slots), segment->staged, MSH_PAGE_BYTES);
    if (++segment->used_slots == segment->slots)
        close_for_good(segment);
    return 0;
}

uint32_t msh_segment_id(const MshSegment *segment)
{
    return segment->id;
}

uint32_t msh_segment_used_slots(const MshSegment *segment)
{
    return segment->used_slots;
}

int msh_segment_read(const MshSegment *segment, uint32_t position, void *ret_page)
{
    if (position >= segment->used_slots)
        return -EINVAL;
    ssize_t got = pread(segment->fd, ret_page, MSH_PAGE_BYTES, (off_t)msh_pages_to_bytes(position));
    if (got < 0)
        return -errno;
    return got == MSH_PAGE_BYTES ? 0 : -EIO;
}

int msh_segment_open_readonly(const MshSegment *segment)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", segment->fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}
