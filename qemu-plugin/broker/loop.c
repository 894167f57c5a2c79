/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See loop.h.
 */
#include "loop.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_A_WAKE 64
#define NS_PER_MS 1000000u

uint64_t msh_loop_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int msh_loop_init(MshLoop *loop)
{
    loop->stopping = false;
    TAILQ_INIT(&loop->waiting);
    TAILQ_INIT(&loop->due);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return loop->epoll_fd < 0 ? -errno : 0;
}

void msh_loop_fini(MshLoop *loop)
{
    MshTask *task;

    /* What is left are burials: they free memory and queue nothing. */
    while ((task = TAILQ_FIRST(&loop->waiting)) != NULL) {
        msh_loop_cancel(task);
        task->run(task);
    }
    close(loop->epoll_fd);
}

int msh_loop_watch(MshLoop *loop, MshSource *source, int fd, uint32_t epoll_events,
                   void (*ready)(MshSource *source, uint32_t epoll_events))
{
    struct epoll_event event = {.events = epoll_events, .data.ptr = source};

    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    source->fd = fd;
    source->ready = ready;
    return 0;
}

void msh_loop_change(MshLoop *loop, MshSource *source, uint32_t epoll_events)
{
    struct epoll_event event = {.events = epoll_events, .data.ptr = source};
    int result = epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event);

    assert(result == 0);
    (void)result;
}

void msh_loop_close(MshLoop *loop, MshSource *source)
{
    if (source->fd < 0)
        return;
    /* Explicitly: an eventfd lives on in the client, and would stay in the set after close. */
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    close(source->fd);
    source->fd = -1;
}

void msh_loop_defer(MshLoop *loop, MshTask *task, uint64_t due_ns)
{
    if (task->queue != NULL) {
        if (due_ns < task->due_ns)
            task->due_ns = due_ns;
        return;
    }
    task->due_ns = due_ns;
    task->queue = &loop->waiting;
    TAILQ_INSERT_TAIL(task->queue, task, link);
}

void msh_loop_cancel(MshTask *task)
{
    if (task->queue == NULL)
        return;
    TAILQ_REMOVE(task->queue, task, link);
    task->queue = NULL;
}

static int wait_ms(const MshLoop *loop)
{
    const MshTask *task;
    uint64_t first_ns = UINT64_MAX, now_ns, left_ms;

    TAILQ_FOREACH(task, &loop->waiting, link)
    {
        if (task->due_ns < first_ns)
            first_ns = task->due_ns;
    }
    if (first_ns == UINT64_MAX)
        return -1;
    if (first_ns == 0)
        return 0;
    now_ns = msh_loop_now_ns();
    if (first_ns <= now_ns)
        return 0;
    left_ms = (first_ns - now_ns) / NS_PER_MS + 1;
    return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

static void run_due_tasks(MshLoop *loop)
{
    MshTask *task, *next;
    uint64_t now_ns;

    if (TAILQ_EMPTY(&loop->waiting))
        return;
    now_ns = msh_loop_now_ns();
    /* First set apart, then run: a task that queues itself again waits for the next round. */
    for (task = TAILQ_FIRST(&loop->waiting); task != NULL; task = next) {
        next = TAILQ_NEXT(task, link);
        if (task->due_ns > now_ns)
            continue;
        TAILQ_REMOVE(&loop->waiting, task, link);
        task->queue = &loop->due;
        TAILQ_INSERT_TAIL(&loop->due, task, link);
    }
    while ((task = TAILQ_FIRST(&loop->due)) != NULL) {
        msh_loop_cancel(task);
        task->run(task);
    }
}

int msh_loop_run(MshLoop *loop)
{
    struct epoll_event events[EVENTS_A_WAKE];

    while (!loop->stopping) {
        int count = epoll_wait(loop->epoll_fd, events, EVENTS_A_WAKE, wait_ms(loop));

        if (count < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < count; i++) {
            MshSource *source = events[i].data.ptr;

            if (source->fd >= 0)
                source->ready(source, events[i].events);
        }
        run_due_tasks(loop);
    }
    return 0;
}
