/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See session.h.
 */
#include "session.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "exchange.h"
#include "greeting.h"

#define MESSAGES_A_WAKE 16

/* Who connects says HELLO at once. Connections that say nothing are limited, a process, and do not last: each
 * has descriptors of the broker's, which serves other groups with the rest. */
#define SILENT_A_PROCESS_MAX 4u
#define HELLO_WITHIN_NS 5000000000ull

static MshLoop *loop_of(const MshSession *session)
{
    return &session->service->broker->loop;
}

static const char *group_of(const MshSession *session)
{
    return msh_group_name(session->service->group);
}

const char *msh_session_state_name(const MshSession *session)
{
    static const char *const names[] = {"greeting", "active", "departed"};

    return names[session->state];
}

void msh_session_condemn(MshSession *session, const char *format, ...)
{
    va_list arguments;

    if (session->condemned_for[0] != '\0' || session->state == MSH_SESSION_DEPARTED)
        return;
    va_start(arguments, format);
    vsnprintf(session->condemned_for, sizeof(session->condemned_for), format, arguments);
    va_end(arguments);
    msh_loop_defer(loop_of(session), &session->turn, 0);
}

void msh_session_sent(MshSession *session, int result)
{
    bool keeps = !msh_outbox_is_empty(&session->outbox);

    if (result == -EPIPE || result == -ECONNRESET)
        return;
    if (result < 0 && result != -EAGAIN)
        msh_session_condemn(session, "cannot send to it: %s", strerror(-result));
    else
        msh_loop_change(loop_of(session), &session->socket, keeps ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Everything but the member and the process's descriptor, which a departed session still needs. */
static void close_channel(MshSession *session)
{
    MshLoop *loop = loop_of(session);

    msh_loop_close(loop, &session->socket);
    msh_loop_close(loop, &session->doorbell);
    msh_loop_cancel(&session->turn);
    if (session->is_ringing) {
        TAILQ_REMOVE(&session->service->broker->ringing, session, ringing_link);
        session->is_ringing = false;
    }
    if (session->to_client_fd >= 0)
        close(session->to_client_fd);
    session->to_client_fd = -1;
    msh_outbox_fini(&session->outbox);
    if (session->ring.memory != NULL)
        munmap(session->ring.memory, sizeof(MshRingMemory));
    session->ring.memory = NULL;
}

static void bury(MshTask *task)
{
    free(MSH_CONTAINER(task, MshSession, burial));
}

void msh_session_end(MshSession *session)
{
    MshLoop *loop = loop_of(session);

    /* The state first: leaving the group may call back about this very session. */
    session->state = MSH_SESSION_DEPARTED;
    close_channel(session);
    msh_loop_close(loop, &session->process);
    session->member = msh_group_leave(session->member); /* I6 */
    TAILQ_REMOVE(&session->service->sessions, session, link);
    msh_loop_defer(loop, &session->burial, 0);
}

/* The channel is over, the process may live on. */
static void depart(MshSession *session)
{
    session->state = MSH_SESSION_DEPARTED;
    close_channel(session);
    if (session->member == NULL || msh_member_grants(session->member) == 0)
        msh_session_end(session);
    else
        msh_member_close(session->member);
}

static void cut_off(MshSession *session)
{
    bool greeted = session->state == MSH_SESSION_ACTIVE;
    char scrap[MSH_MESSAGE_BYTES_MAX];
    MshMessage message;

    msh_log_error("%s group=%s guest=\"%s\" pid=%d uid=%u reason=\"%s\"",
                  greeted ? "client_cut_off" : "client_refused", group_of(session),
                  session->guest_name, (int)session->peer.pid, (unsigned)session->peer.uid,
                  session->condemned_for);
    memset(&message, 0, sizeof(message));
    memcpy(message.refused.reason, session->condemned_for, sizeof(message.refused.reason));
    (void)msh_outbox_post(session->socket.fd, &message, MSH_MESSAGE_REFUSED, NULL, 0);
    /* Closing with unread messages would make the client see a reset before the reason. */
    shutdown(session->socket.fd, SHUT_RD);
    while (recv(session->socket.fd, scrap, sizeof(scrap), MSG_DONTWAIT) > 0)
        ; /* what its buffer held; no more can come */
    depart(session);
}

static void take_turn(MshTask *task)
{
    MshSession *session = MSH_CONTAINER(task, MshSession, turn);

    if (session->state == MSH_SESSION_GREETING)
        msh_session_condemn(session, "no HELLO within %llu s", HELLO_WITHIN_NS / 1000000000u);
    if (session->condemned_for[0] == '\0' && session->state == MSH_SESSION_ACTIVE)
        msh_exchange_serve(session);
    if (session->condemned_for[0] != '\0')
        cut_off(session);
}

static void greet(MshSession *session, const MshHello *hello)
{
    MshError error = {{0}};

    if (msh_greeting_answer(session, hello, &error) < 0) {
        msh_session_condemn(session, "%s", error.text);
        return;
    }
    msh_log_info("client_joined group=%s guest=\"%s\" pid=%d uid=%u", group_of(session),
                 session->guest_name, (int)session->peer.pid, (unsigned)session->peer.uid);
}

/* A client that reconnected has un-shared, or shared anew, what it had by an earlier connection. Its grants
 * would otherwise keep their slots until the process ends, months from now. I6 */
static void end_left(MshSession *session, uint32_t number)
{
    MshSession *other, *next;

    for (other = TAILQ_FIRST(&session->service->sessions); other != NULL; other = next) {
        next = TAILQ_NEXT(other, link);
        if (other->state != MSH_SESSION_DEPARTED || other->number != number ||
            other->peer.pid != session->peer.pid)
            continue;
        msh_log_info("client_left_earlier group=%s guest=\"%s\" pid=%d grants=%llu",
                     group_of(other), other->guest_name, (int)other->peer.pid,
                     (unsigned long long)msh_member_grants(other->member));
        msh_session_end(other);
    }
}

static void take_message(MshSession *session, const void *bytes, size_t length_bytes)
{
    MshError error = {{0}};
    MshMessage message;
    int type;

    if (msh_message_decode(bytes, length_bytes, &message, &error) < 0) {
        msh_session_condemn(session, "%s", error.text);
        return;
    }
    type = message.header.type;
    if (session->state == MSH_SESSION_GREETING) {
        if (type == MSH_MESSAGE_HELLO)
            greet(session, &message.hello);
        else
            msh_session_condemn(session, "message %d before HELLO", type);
        return;
    }
    if (type == MSH_MESSAGE_LEFT && (session->features & MSH_FEATURE_LEFT))
        end_left(session, message.left.session);
    else if (type != MSH_MESSAGE_FORGOTTEN)
        msh_session_condemn(session, "message %d is not for a client to send now", type);
    else if (msh_member_forgot(session->member, message.segment.segment) < 0)
        msh_session_condemn(session, "FORGOTTEN of segment %u, which is not retired",
                            message.segment.segment);
}

static void socket_ready(MshSource *source, uint32_t epoll_events)
{
    MshSession *session = MSH_CONTAINER(source, MshSession, socket);
    uint8_t bytes[MSH_MESSAGE_BYTES_MAX];

    if (session->condemned_for[0] != '\0')
        return;
    if (epoll_events & EPOLLOUT)
        msh_session_sent(session, msh_outbox_flush(&session->outbox, session->socket.fd));
    for (int i = 0; i < MESSAGES_A_WAKE && session->condemned_for[0] == '\0'; i++) {
        /* No room for descriptors: those sent along are closed by the kernel. */
        ssize_t got = recv(session->socket.fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_TRUNC);

        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) { /* the end, or an empty message, which nobody has reason to send */
            if (session->state == MSH_SESSION_ACTIVE) {
                msh_exchange_finish(session);
                msh_log_info("client_left group=%s guest=\"%s\" pid=%d grants=%llu",
                             group_of(session), session->guest_name, (int)session->peer.pid,
                             (unsigned long long)msh_member_grants(session->member));
            }
            depart(session);
            return;
        }
        if ((size_t)got > sizeof(bytes))
            msh_session_condemn(session, "message of %zd bytes is too long", got);
        else
            take_message(session, bytes, (size_t)got);
    }
}

static void process_ended(MshSource *source, uint32_t epoll_events)
{
    MshSession *session = MSH_CONTAINER(source, MshSession, process);

    (void)epoll_events;
    if (session->member != NULL)
        msh_log_info("client_process_ended group=%s guest=\"%s\" pid=%d grants=%llu",
                     group_of(session), session->guest_name, (int)session->peer.pid,
                     (unsigned long long)msh_member_grants(session->member));
    msh_session_end(session);
}

/* The pid names one process: it cannot be reused while a session still waits for its end. */
static unsigned count_silent(const MshService *service, pid_t pid)
{
    const MshSession *other;
    unsigned count = 0;

    TAILQ_FOREACH(other, &service->sessions, link)
    count += other->state == MSH_SESSION_GREETING && other->peer.pid == pid;
    return count;
}

void msh_session_open(MshService *service, int socket_fd)
{
    MshLoop *loop = &service->broker->loop;
    MshSession *session = calloc(1, sizeof(*session));
    MshError error = {{0}};
    int result;

    assert(session != NULL);
    session->service = service;
    session->socket.fd = session->process.fd = session->doorbell.fd = session->to_client_fd = -1;
    session->turn.run = take_turn;
    session->burial.run = bury;
    msh_outbox_init(&session->outbox);
    result = msh_peer_identify(socket_fd, &session->peer, &error);
    if (result < 0)
        goto fail;
    if (count_silent(service, session->peer.pid) >= SILENT_A_PROCESS_MAX) {
        result = msh_error_set(&error, -EUSERS, "process %d has %u connections without HELLO",
                               (int)session->peer.pid, SILENT_A_PROCESS_MAX);
        close(session->peer.pidfd);
        goto fail;
    }
    result = msh_loop_watch(loop, &session->process, session->peer.pidfd, EPOLLIN, process_ended);
    if (result < 0) {
        close(session->peer.pidfd);
        goto fail;
    }
    result = msh_loop_watch(loop, &session->socket, socket_fd, EPOLLIN, socket_ready);
    if (result < 0) {
        msh_loop_close(loop, &session->process);
        goto fail;
    }
    TAILQ_INSERT_TAIL(&service->sessions, session, link);
    msh_loop_defer(loop, &session->turn, msh_loop_now_ns() + HELLO_WITHIN_NS);
    return;

fail:
    msh_log_error("connection_dropped group=%s reason=\"%s\"", msh_group_name(service->group),
                  error.text[0] != '\0' ? error.text : strerror(-result));
    close(socket_fd);
    free(session);
}
