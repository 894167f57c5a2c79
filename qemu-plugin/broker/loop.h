/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The event loop: descriptors that become ready, and tasks that run later. One thread.
 *
 * What holds:
 *   - Tasks run after all events of a wake were handed out. So whoever embeds a source may be freed
 *     from a task, and only from a task: an event of the same wake may still point to it.
 *   - A closed source gets no more calls, also not those of the same wake.
 *   - Each due task runs once a round: no session can keep the others from their turn.
 */
#ifndef MSH_LOOP_H
#define MSH_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define MSH_CONTAINER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

typedef struct MshSource MshSource;
struct MshSource {
    int fd; /* -1 when closed: initialise it so */
    void (*ready)(MshSource *source, uint32_t epoll_events);
};

typedef struct MshTask MshTask;
typedef TAILQ_HEAD(MshTaskList, MshTask) MshTaskList;
struct MshTask {
    TAILQ_ENTRY(MshTask) link;
    MshTaskList *queue; /* NULL: not queued */
    uint64_t due_ns;
    void (*run)(MshTask *task);
};

typedef struct MshLoop {
    int epoll_fd;
    bool stopping;
    MshTaskList waiting;
    MshTaskList due;
} MshLoop;

int msh_loop_init(MshLoop *loop);
void msh_loop_fini(MshLoop *loop);

/* Takes fd over: msh_loop_close closes it. On failure it stays the caller's. */
int msh_loop_watch(MshLoop *loop, MshSource *source, int fd, uint32_t epoll_events,
                   void (*ready)(MshSource *source, uint32_t epoll_events));
void msh_loop_change(MshLoop *loop, MshSource *source, uint32_t epoll_events);
void msh_loop_close(MshLoop *loop, MshSource *source); /* fine when closed already */

/* Runs the task once, at due_ns at the earliest (0: next); one that is queued keeps the earlier. */
void msh_loop_defer(MshLoop *loop, MshTask *task, uint64_t due_ns);
void msh_loop_cancel(MshTask *task); /* fine when not queued */

/* Until stopping is set. 0 or -errno. */
int msh_loop_run(MshLoop *loop);

uint64_t msh_loop_now_ns(void); /* CLOCK_MONOTONIC */

#endif
