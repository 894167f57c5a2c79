/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See greeting.h.
 */
#include "greeting.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "exchange.h"

/* Of one process in one group, departed ones with grants included: whoever reconnects in a loop
 * without releasing what it held is stopped. */
#define SESSIONS_A_PROCESS_MAX 16u

static unsigned count_sessions_of(const MshService *service, pid_t pid)
{
    const MshSession *other;
    unsigned count = 0;

    /* The pid names one process: it cannot be reused while a session still waits for its end. */
    TAILQ_FOREACH(other, &service->sessions, link)
    count += other->member != NULL && other->peer.pid == pid;
    return count;
}

static int check_peer(const MshSession *session, const MshHello *hello, MshError *error)
{
    const MshService *service = session->service;
    const MshBroker *broker = service->broker;
    int result = msh_admission_check(&broker->admission, msh_group_name(service->group),
                                     &session->peer, error);

    if (result < 0)
        return result;
    if (msh_protocol_choose(hello->oldest, hello->newest) < 0)
        return msh_error_set(
            error, -EPROTONOSUPPORT, "protocol %u to %u is asked for, this broker speaks %u to %u",
            hello->oldest, hello->newest, MSH_PROTOCOL_OLDEST, MSH_PROTOCOL_NEWEST);
    if (broker->uffd_device_fd < 0)
        return msh_error_set(error, broker->uffd_device_fd,
                             "the broker cannot open /dev/userfaultfd: %s",
                             strerror(-broker->uffd_device_fd));
    if (count_sessions_of(service, session->peer.pid) >= SESSIONS_A_PROCESS_MAX)
        return msh_error_set(error, -EUSERS, "process %d has too many sessions with grants",
                             (int)session->peer.pid);
    return 0;
}

/* *ret_fd may be closed once it was sent: the mapping keeps it. */
static int make_ring(MshRingMemory **ret_memory, int *ret_fd, MshError *error)
{
    int fd = memfd_create("memshare-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *memory;
    int result;

    if (fd < 0)
        return msh_error_set(error, -errno, "memfd_create: %s", strerror(errno));
    /* Sealed against resizing: a ring cut short would make the broker die of SIGBUS. */
    if (ftruncate(fd, sizeof(MshRingMemory)) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        result = msh_error_set(error, -errno, "cannot make the ring: %s", strerror(errno));
        close(fd);
        return result;
    }
    memory = mmap(NULL, sizeof(MshRingMemory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        result = msh_error_set(error, -errno, "cannot map the ring: %s", strerror(errno));
        close(fd);
        return result;
    }
    *ret_memory = memory;
    *ret_fd = fd;
    return 0;
}

static int welcome(const MshSession *session, const MshHello *hello, int ring_fd, MshError *error)
{
    const MshService *service = session->service;
    const int fds[MSH_WELCOME_DESCRIPTORS] = {
        [MSH_WELCOME_UFFD_DEVICE] = service->broker->uffd_device_fd,
        [MSH_WELCOME_RING] = ring_fd,
        [MSH_WELCOME_TO_BROKER] = session->doorbell.fd,
        [MSH_WELCOME_TO_CLIENT] = session->to_client_fd,
    };
    MshMessage message;
    int result;

    memset(&message, 0, sizeof(message)); /* padding too: it crosses to another process */
    message.welcome.version = (uint32_t)msh_protocol_choose(hello->oldest, hello->newest);
    message.welcome.session = session->number;
    message.welcome.features = session->features;
    snprintf(message.welcome.group, sizeof(message.welcome.group), "%s",
             msh_group_name(service->group));
    memcpy(message.welcome.secret, msh_group_secret(service->group), MSH_SECRET_BYTES);
    result = msh_outbox_post(session->socket.fd, &message, MSH_MESSAGE_WELCOME, fds,
                             MSH_WELCOME_DESCRIPTORS);
    if (result < 0)
        return msh_error_set(error, result, "cannot send WELCOME: %s", strerror(-result));
    return 0;
}

static void keep_guest_name(MshSession *session, const MshHello *hello)
{
    if (hello->guest_name[0] == '\0') {
        snprintf(session->guest_name, sizeof(session->guest_name), "pid %d",
                 (int)session->peer.pid);
        return;
    }
    snprintf(session->guest_name, sizeof(session->guest_name), "%s", hello->guest_name);
    for (char *c = session->guest_name; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\')
            *c = '?'; /* it stands in quotes in the log */
    }
}

int msh_greeting_answer(MshSession *session, const MshHello *hello, MshError *error)
{
    MshService *service = session->service;
    MshLoop *loop = &service->broker->loop;
    MshRingMemory *memory = NULL;
    MshMember *member;
    int ring_fd = -1, doorbell_fd, result = check_peer(session, hello, error);

    if (result < 0)
        return result;
    result = make_ring(&memory, &ring_fd, error);
    if (result < 0)
        return result;
    doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    session->to_client_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (doorbell_fd < 0 || session->to_client_fd < 0) {
        result = msh_error_set(error, -errno, "eventfd: %s", strerror(errno));
        if (doorbell_fd >= 0)
            close(doorbell_fd);
        goto fail;
    }
    result = msh_loop_watch(loop, &session->doorbell, doorbell_fd, EPOLLIN | EPOLLET,
                            msh_exchange_doorbell);
    if (result < 0) {
        msh_error_set(error, result, "epoll: %s", strerror(-result));
        close(doorbell_fd);
        goto fail;
    }
    result = msh_group_join(service->group, session, &member);
    if (result < 0) {
        msh_error_set(error, result, "cannot join the group: %s", strerror(-result));
        goto fail;
    }
    session->features = hello->features & MSH_FEATURES;
    /* By chance: one that an earlier broker gave, and that is named here, means nobody. */
    if (getrandom(&session->number, sizeof(session->number), 0) < 0)
        session->features &= ~MSH_FEATURE_LEFT;
    result = welcome(session, hello, ring_fd, error);
    if (result < 0) {
        msh_group_leave(member);
        goto fail;
    }
    close(ring_fd);
    keep_guest_name(session, hello);
    session->member = member;
    msh_ring_init(&session->ring, memory);
    msh_exchange_start(session);
    session->state = MSH_SESSION_ACTIVE;
    return 0;

fail:
    msh_loop_close(loop, &session->doorbell);
    if (session->to_client_fd >= 0)
        close(session->to_client_fd);
    session->to_client_fd = -1;
    munmap(memory, sizeof(MshRingMemory));
    close(ring_fd);
    return result;
}
