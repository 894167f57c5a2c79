/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A group being served: its store and table (store/group.h), its socket, its sessions. Sessions
 * reach their own service only, so nothing of one group is reachable from another (I5).
 */
#ifndef MSH_SERVICE_H
#define MSH_SERVICE_H

#include "broker.h"
#include "group.h"
#include "listener.h"

struct MshService {
    TAILQ_ENTRY(MshService) link;
    MshBroker *broker;
    MshGroup *group;
    MshListener listener;
    TAILQ_HEAD(, MshSession) sessions;
    MshTask burial;
};

/* -EINVAL bad name, or the control socket's · -EEXIST served already · -EADDRINUSE · ... */
int msh_service_new(MshBroker *broker, const char *name, MshError *error);

/* Ends its sessions, removes its socket, forgets who was announced for it. The store's memory lives
 * on in the mappings of guests. */
void msh_service_end(MshService *service);

MshService *msh_service_find(const MshBroker *broker, const char *name);

#endif
