/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From HELLO to WELCOME: may this peer connect, in which version, and the ring and descriptors it
 * gets.
 */
#ifndef MSH_GREETING_H
#define MSH_GREETING_H

#include "session.h"

/* 0: the session is ACTIVE. Otherwise -errno, error says what to tell the client, and the session
 * is as before. */
int msh_greeting_answer(MshSession *session, const MshHello *hello, MshError *error);

#endif
