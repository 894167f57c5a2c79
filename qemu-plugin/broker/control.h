/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The operator's socket: SOCK_STREAM, one JSON object a line in, one JSON object a line out.
 * Whoever may open it (mode 0600) is trusted with every command; what they send is checked all the
 * same.
 */
#ifndef MSH_CONTROL_H
#define MSH_CONTROL_H

#include "broker.h"
#include "listener.h"

typedef struct MshControlClient MshControlClient;

typedef struct MshControl {
    MshBroker *broker;
    MshListener listener;
    TAILQ_HEAD(, MshControlClient) clients;
    unsigned client_count;
} MshControl;

/* On the socket that the service manager has passed, or else on one of our own at control_path;
 * control_path tells afterwards which it is. */
int msh_control_init(MshControl *control, MshBroker *broker, MshError *error);
void msh_control_fini(MshControl *control);

#endif
