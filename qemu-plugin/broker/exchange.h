/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ring of a session: requests in, answers and hints out, bells rung once a turn.
 */
#ifndef MSH_EXCHANGE_H
#define MSH_EXCHANGE_H

#include "session.h"

/* Sets the quota of a session that becomes ACTIVE. */
void msh_exchange_start(MshSession *session);

/* The client rang. */
void msh_exchange_doorbell(MshSource *source, uint32_t epoll_events);

/* One turn: a bounded number of requests; asks for another turn when more are left. */
void msh_exchange_serve(MshSession *session);

/* The client closed in good order: what it released before still counts. */
void msh_exchange_finish(MshSession *session);

/* MshGroupEvents; opaque is the service. */
bool msh_exchange_hint(void *opaque, MshMember *member, MshFrame frame, MshSlot slot);
void msh_exchange_retired(void *opaque, MshMember *member, uint32_t segment);
void msh_exchange_emptying(void *opaque, MshMember *member, uint32_t segment);

#endif
