/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A listening Unix socket with a path: made, accepted from, removed; or passed in by the service
 * manager, who goes on listening when we have ended.
 *
 * A socket left behind by a dead broker is replaced; one that somebody answers on is refused. On
 * closing, the path is removed only while it is still ours; that of a passed one never is.
 */
#ifndef MSH_LISTENER_H
#define MSH_LISTENER_H

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>

#include "loop.h"
#include "memshare/error.h"

#define MSH_SOCKET_PATH_BYTES sizeof(((struct sockaddr_un *)NULL)->sun_path)
#define MSH_NO_GROUP ((gid_t)-1)

typedef struct MshListener {
    MshSource source;
    char path[MSH_SOCKET_PATH_BYTES];
    dev_t device;
    ino_t inode;
    int reserve_fd; /* given up to take, and close, one connection when descriptors have run out */
} MshListener;

/* type: SOCK_SEQPACKET or SOCK_STREAM. owner_group: MSH_NO_GROUP leaves it. ready: call
 * msh_listener_accept. -EADDRINUSE a live one is there · -EEXIST something else is there. */
int msh_listener_open(MshLoop *loop, MshListener *listener, const char *path, int type, mode_t mode,
                      gid_t owner_group, void (*ready)(MshSource *source, uint32_t epoll_events),
                      MshError *error);

/* The only socket that the service manager has passed (sd_listen_fds): a listening Unix one of this
 * type. 0 and *ret_fd, -1 where none was passed · -EINVAL more than one, or of another kind. Ours to
 * close, or to give to msh_listener_adopt. */
int msh_listener_passed(int type, int *ret_fd, MshError *error);

/* Takes fd over, also when it fails. */
int msh_listener_adopt(MshLoop *loop, MshListener *listener, int fd,
                       void (*ready)(MshSource *source, uint32_t epoll_events), MshError *error);

void msh_listener_close(MshLoop *loop, MshListener *listener);

/* A new connection, non-blocking, or -errno (-EAGAIN: none). */
int msh_listener_accept(MshListener *listener);

#endif
