/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See service.h.
 */
#include "service.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "codec.h"
#include "exchange.h"
#include "session.h"

/* Generous: 64 GiB granted to one client, a table for 256 GiB of different pages in a group. They
 * are there to bound what a hostile client can make the broker allocate. */
#define MEMBER_SLOTS_MAX (16ull << 20)
#define TABLE_ENTRIES_MAX (64ull << 20)

static void socket_ready(MshSource *source, uint32_t epoll_events)
{
    MshListener *listener = MSH_CONTAINER(source, MshListener, source);
    MshService *service = MSH_CONTAINER(listener, MshService, listener);
    int fd = msh_listener_accept(listener);

    (void)epoll_events;
    if (fd >= 0)
        msh_session_open(service, fd);
}

static void bury(MshTask *task)
{
    free(MSH_CONTAINER(task, MshService, burial));
}

int msh_service_new(MshBroker *broker, const char *name, MshError *error)
{
    const MshGroupLimits limits = {
        .store_bytes = broker->options.store_limit_bytes,
        .table_entries = TABLE_ENTRIES_MAX,
        .member_slots = MEMBER_SLOTS_MAX,
    };
    char path[MSH_SOCKET_PATH_BYTES];
    MshGroupEvents events = {.hint = msh_exchange_hint,
                             .retired = msh_exchange_retired,
                             .emptying = msh_exchange_emptying};
    MshService *service;
    int result = msh_group_name_check(name, error);

    if (result < 0)
        return result;
    if (msh_service_find(broker, name) != NULL)
        return msh_error_set(error, -EEXIST, "group %s is served already", name);
    if (snprintf(path, sizeof(path), "%s/%s.sock", broker->options.runtime_dir, name) >=
        (int)sizeof(path))
        return msh_error_set(error, -ENAMETOOLONG, "%s/%s.sock: longer than a socket's path may be",
                             broker->options.runtime_dir, name);
    if (strcmp(path, broker->options.control_path) == 0)
        return msh_error_set(error, -EINVAL, "group %s: %s is the control socket", name, path);
    service = calloc(1, sizeof(*service));
    assert(service != NULL);
    service->broker = broker;
    service->burial.run = bury;
    TAILQ_INIT(&service->sessions);
    events.opaque = service;
    result = msh_group_new(name, &limits, &events, &service->group, error);
    if (result < 0) {
        free(service);
        return result;
    }
    result = msh_listener_open(&broker->loop, &service->listener, path, SOCK_SEQPACKET,
                               broker->options.socket_mode, broker->options.socket_group,
                               socket_ready, error);
    if (result < 0) {
        msh_group_free(service->group);
        free(service);
        return result;
    }
    TAILQ_INSERT_TAIL(&broker->services, service, link);
    msh_log_info("group_added group=%s socket=%s", name, path);
    return 0;
}

void msh_service_end(MshService *service)
{
    MshBroker *broker = service->broker;
    MshSession *session;

    msh_listener_close(&broker->loop, &service->listener);
    while ((session = TAILQ_FIRST(&service->sessions)) != NULL)
        msh_session_end(session);
    msh_admission_forget_group(&broker->admission, msh_group_name(service->group));
    msh_log_info("group_removed group=%s", msh_group_name(service->group));
    service->group = msh_group_free(service->group);
    TAILQ_REMOVE(&broker->services, service, link);
    msh_loop_defer(&broker->loop, &service->burial, 0);
}

MshService *msh_service_find(const MshBroker *broker, const char *name)
{
    MshService *service;

    TAILQ_FOREACH(service, &broker->services, link)
    {
        if (strcmp(msh_group_name(service->group), name) == 0)
            return service;
    }
    return NULL;
}
