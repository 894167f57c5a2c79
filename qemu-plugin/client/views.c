/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "views.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The descriptor came from another process: a segment that somebody could still write to or shrink
 * would change or kill a guest's memory under it. I3 */
static int check_segment(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    int flags = fcntl(fd, F_GETFL);
    struct stat status;
    if (seals < 0 || flags < 0 || fstat(fd, &status) < 0)
        return -EBADF;
    if ((flags & O_ACCMODE) != O_RDONLY || !(seals & F_SEAL_SHRINK) ||
        !(seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) || !S_ISREG(status.st_mode) ||
        status.st_size > MSH_SEGMENT_BYTES)
        return -EBADF;
    return 0;
}

int msh_views_open(MshViews *views, uint32_t segment, int segment_fd, uint32_t *ret_local)
{
    int result = check_segment(segment_fd);
    uint32_t local = 0;
    while (local < MSH_VIEWS_MAX && views->view[local])
        local++;
    if (result == 0 && local == MSH_VIEWS_MAX)
        result = -ENOSPC;
    MshView *view = result == 0 ? calloc(1, sizeof *view) : NULL;
    if (!view) {
        close(segment_fd);
        return result ? result : -ENOMEM;
    }
    void *bytes = mmap(NULL, MSH_SEGMENT_BYTES, PROT_READ, MAP_SHARED, segment_fd, 0);
    /* NORESERVE: a mapping that is charged could fail after it has unmapped its target. */
    void *template = mmap(NULL, MSH_SEGMENT_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_NORESERVE, segment_fd, 0);
    if (bytes == MAP_FAILED || template == MAP_FAILED) {
        result = -errno;
        if (bytes != MAP_FAILED)
            munmap(bytes, MSH_SEGMENT_BYTES);
        if (template != MAP_FAILED)
            munmap(template, MSH_SEGMENT_BYTES);
        close(segment_fd);
        free(view);
        return result;
    }
    madvise(bytes, MSH_SEGMENT_BYTES, MADV_DONTFORK);
    madvise(bytes, MSH_SEGMENT_BYTES, MADV_DONTDUMP);
    *view = (MshView){.segment = segment,
                      .source = views->source,
                      .fd = segment_fd,
                      .bytes = bytes,
                      .template = template};
    views->view[local] = view;
    *ret_local = local;
    return 0;
}

int msh_views_find(const MshViews *views, uint32_t segment, uint32_t *ret_local)
{
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++) {
        const MshView *view = views->view[local];
        if (view && view->segment == segment && view->source == views->source) {
            *ret_local = local;
            return 0;
        }
    }
    return -ENOENT;
}

static void close_fd(MshView *view)
{
    if (view->fd >= 0)
        close(view->fd);
    view->fd = -1;
}

void msh_views_close(MshViews *views, uint32_t local)
{
    MshView *view = views->view[local];
    views->view[local] = NULL;
    munmap((void *)view->bytes, MSH_SEGMENT_BYTES);
    munmap(view->template, MSH_SEGMENT_BYTES);
    close_fd(view);
    free(view);
}

void msh_views_close_all(MshViews *views)
{
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++)
        if (views->view[local])
            msh_views_close(views, local);
}

void msh_views_new_source(MshViews *views)
{
    views->source++;
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++)
        if (views->view[local])
            atomic_store(&views->view[local]->is_leaving, true);
}

bool msh_views_leave(MshViews *views, uint32_t local)
{
    return !atomic_exchange(&views->view[local]->is_leaving, true);
}

bool msh_views_retire(MshViews *views, uint32_t local)
{
    MshView *view = views->view[local];
    view->retired = true;
    return msh_views_leave(views, local) && atomic_load(&view->mapped_pages) > 0;
}

uint64_t msh_views_leaving_pages(const MshViews *views)
{
    uint64_t pages = 0;
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++) {
        const MshView *view = views->view[local];
        if (view && atomic_load(&((MshView *)view)->is_leaving))
            pages += atomic_load(&((MshView *)view)->mapped_pages);
    }
    return pages;
}

uint64_t msh_views_lost_pages(const MshViews *views)
{
    uint64_t pages = 0;
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++) {
        const MshView *view = views->view[local];
        if (view && view->source != views->source)
            pages += atomic_load(&((MshView *)view)->mapped_pages);
    }
    return pages;
}

bool msh_views_has_lost(const MshViews *views)
{
    for (uint32_t local = 0; local < MSH_VIEWS_MAX; local++)
        if (views->view[local] && views->view[local]->source != views->source)
            return true;
    return false;
}

bool msh_view_holds(MshView *view, MshSlot slot)
{
    uint64_t end_bytes = msh_slot_offset_bytes(slot) + MSH_PAGE_BYTES;
    struct stat status;
    if (end_bytes > view->size_bytes && view->fd >= 0 && fstat(view->fd, &status) == 0) {
        view->size_bytes = (uint64_t)status.st_size;
        if (view->size_bytes == MSH_SEGMENT_BYTES)
            close_fd(view); /* it grows no more, and the process may be short of descriptors */
    }
    return end_bytes <= view->size_bytes;
}

void msh_view_set_flags(MshView *view, bool dont_fork, bool dont_dump)
{
    if (view->dont_fork != dont_fork)
        madvise(view->template, MSH_SEGMENT_BYTES, dont_fork ? MADV_DONTFORK : MADV_DOFORK);
    if (view->dont_dump != dont_dump)
        madvise(view->template, MSH_SEGMENT_BYTES, dont_dump ? MADV_DONTDUMP : MADV_DODUMP);
    view->dont_fork = dont_fork;
    view->dont_dump = dont_dump;
}
