/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection of one client, from accept() until its process has ended.
 *
 *   GREETING -> HELLO accepted -> ACTIVE -> socket closed or cut off -> DEPARTED -> process ended
 * -> gone
 *
 * What holds:
 *   - A member of the group exists exactly while a session is ACTIVE or DEPARTED.
 *   - Grants end when the process has ended (its pidfd is readable), not when the socket closes:
 * the mappings live as long as the process (I6). A departed session without grants is gone at once.
 *   - A client that breaks the protocol is condemned, and cut off at its next turn, never from
 * within a verb of the group, which may be in the middle of another session's request.
 */
#ifndef MSH_SESSION_H
#define MSH_SESSION_H

#include "broker.h"
#include "group.h"
#include "outbox.h"
#include "pace.h"
#include "ring.h"
#include "service.h"

typedef enum MshSessionState {
    MSH_SESSION_GREETING = 0,
    MSH_SESSION_ACTIVE = 1,
    MSH_SESSION_DEPARTED = 2,
} MshSessionState;

struct MshSession {
    TAILQ_ENTRY(MshSession) link;         /* of its service */
    TAILQ_ENTRY(MshSession) ringing_link; /* of the broker, while is_ringing */
    MshService *service;
    MshSessionState state;
    MshPeer peer; /* its pidfd is process.fd */
    char guest_name[MSH_NAME_BYTES];
    uint64_t features; /* in force */
    uint32_t number;   /* by which a later session of the process tells that this one is over: LEFT */
    MshSource socket;
    MshSource process;
    MshSource doorbell; /* the eventfd to_broker; edge-triggered and never read: see exchange.c */
    int to_client_fd;
    MshMember *member; /* NULL: GREETING */
    MshRingEnd ring;   /* memory NULL: not ACTIVE */
    MshOutbox outbox;
    MshPace pace;
    bool is_stalled; /* over its quota: the doorbell is not listened to until its next turn */
    bool is_ringing;
    uint32_t bad_releases;
    char condemned_for[MSH_TEXT_BYTES]; /* empty: in good standing */
    MshTask turn;
    MshTask burial;
};

/* Takes the connection over. */
void msh_session_open(MshService *service, int socket_fd);

/* Ends it at once: grants return, everything is closed. Not from within a verb of the group. */
void msh_session_end(MshSession *session);

/* Marks a client that broke a rule; it is told why, if it reads, and cut off soon. The first reason
 * stands. Any context. */
void msh_session_condemn(MshSession *session, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What came of sending: on -EAGAIN listens for the socket to become writable, other failures
 * condemn; but one that only says that the client has gone is left for the socket's own event to
 * tell. */
void msh_session_sent(MshSession *session, int result);

const char *msh_session_state_name(const MshSession *session);

#endif
