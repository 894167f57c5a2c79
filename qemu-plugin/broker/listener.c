/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See listener.h.
 */
#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "log.h"

#define BACKLOG 128

static int open_reserve(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

/* 0: nothing stands in the way (any more). */
static int clear_stale(const struct sockaddr_un *address, int type, MshError *error)
{
    struct stat facts;
    int probe, result;

    if (lstat(address->sun_path, &facts) < 0) {
        if (errno == ENOENT)
            return 0;
        return msh_error_set(error, -errno, "%s: %s", address->sun_path, strerror(errno));
    }
    if (!S_ISSOCK(facts.st_mode))
        return msh_error_set(error, -EEXIST, "%s exists and is not a socket", address->sun_path);
    probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return msh_error_set(error, -errno, "socket: %s", strerror(errno));
    result = connect(probe, (const struct sockaddr *)address, sizeof(*address)) < 0 ? errno : 0;
    close(probe);
    /* Only "nobody listens" proves it dead; a full backlog, another type or no permission do not.
     */
    if (result != ECONNREFUSED)
        return msh_error_set(error, -EADDRINUSE, "%s is in use by another running broker",
                             address->sun_path);
    if (unlink(address->sun_path) < 0 && errno != ENOENT)
        return msh_error_set(error, -errno, "cannot remove stale %s: %s", address->sun_path,
                             strerror(errno));
    msh_log_info("stale_socket_removed path=%s", address->sun_path);
    return 0;
}

int msh_listener_open(MshLoop *loop, MshListener *listener, const char *path, int type, mode_t mode,
                      gid_t owner_group, void (*ready)(MshSource *source, uint32_t epoll_events),
                      MshError *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat facts;
    int fd, result;
    bool bound = false;

    listener->source.fd = -1;
    listener->reserve_fd = -1;
    if (strlen(path) >= sizeof(address.sun_path))
        return msh_error_set(error, -ENAMETOOLONG, "%s: longer than a socket's path may be", path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    memcpy(listener->path, path, strlen(path) + 1);
    result = clear_stale(&address, type, error);
    if (result < 0)
        return result;
    fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return msh_error_set(error, -errno, "socket: %s", strerror(errno));
    /* The umask is 0077, so nobody else can connect before the mode is set. */
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        result = msh_error_set(error, -errno, "%s: cannot bind: %s", path, strerror(errno));
        goto fail;
    }
    bound = true;
    if (owner_group != MSH_NO_GROUP && lchown(path, (uid_t)-1, owner_group) < 0) {
        result = msh_error_set(error, -errno, "%s: cannot give it to group %u: %s", path,
                               (unsigned)owner_group, strerror(errno));
        goto fail;
    }
    if (chmod(path, mode) < 0 || lstat(path, &facts) < 0 || listen(fd, BACKLOG) < 0) {
        result = msh_error_set(error, -errno, "%s: %s", path, strerror(errno));
        goto fail;
    }
    listener->device = facts.st_dev;
    listener->inode = facts.st_ino;
    result = msh_loop_watch(loop, &listener->source, fd, EPOLLIN, ready);
    if (result < 0) {
        msh_error_set(error, result, "%s: epoll: %s", path, strerror(-result));
        goto fail;
    }
    listener->reserve_fd = open_reserve();
    return 0;

fail:
    if (bound)
        unlink(path);
    close(fd);
    return result;
}

int msh_listener_passed(int type, int *ret_fd, MshError *error)
{
    const int count = sd_listen_fds(1);
    int result;

    if (count < 0)
        return msh_error_set(error, count, "LISTEN_FDS: %s", strerror(-count));
    if (count == 0) {
        *ret_fd = -1;
        return 0;
    }
    if (count > 1)
        return msh_error_set(error, -EINVAL,
                             "the service manager passes %d sockets: one is expected, the control "
                             "socket",
                             count);
    result = sd_is_socket_unix(SD_LISTEN_FDS_START, type, 1, NULL, 0);
    if (result < 0)
        return msh_error_set(error, result, "the socket that the service manager passes: %s",
                             strerror(-result));
    if (result == 0)
        return msh_error_set(error, -EINVAL,
                             "what the service manager passes is not a listening Unix socket of the "
                             "control socket's type (ListenStream=)");
    *ret_fd = SD_LISTEN_FDS_START;
    return 0;
}

int msh_listener_adopt(MshLoop *loop, MshListener *listener, int fd,
                       void (*ready)(MshSource *source, uint32_t epoll_events), MshError *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t address_bytes = sizeof(address) - 1; /* so that the path always ends in a NUL */
    const int flags = fcntl(fd, F_GETFL);
    int result = 0;

    listener->source.fd = -1;
    listener->reserve_fd = -1;
    listener->inode = 0; /* no file's: nothing is removed */
    /* A connection may be gone again when it is to be accepted. */
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &address_bytes) < 0)
        result = msh_error_set(error, -errno, "the socket that was passed: %s", strerror(errno));
    if (result == 0) {
        memcpy(listener->path, address.sun_path, sizeof(listener->path));
        result = msh_loop_watch(loop, &listener->source, fd, EPOLLIN, ready);
        if (result < 0)
            msh_error_set(error, result, "%s: epoll: %s", listener->path, strerror(-result));
    }
    if (result < 0) {
        close(fd);
        return result;
    }
    listener->reserve_fd = open_reserve();
    return 0;
}

void msh_listener_close(MshLoop *loop, MshListener *listener)
{
    struct stat facts;

    if (listener->source.fd < 0)
        return;
    msh_loop_close(loop, &listener->source);
    if (listener->reserve_fd >= 0)
        close(listener->reserve_fd);
    if (lstat(listener->path, &facts) == 0 && facts.st_dev == listener->device &&
        facts.st_ino == listener->inode)
        unlink(listener->path);
}

int msh_listener_accept(MshListener *listener)
{
    int fd = accept4(listener->source.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int result;

    if (fd >= 0)
        return fd;
    result = -errno;
    if (result != -EMFILE && result != -ENFILE)
        return result;
    /* Left in the backlog it would wake the loop for ever; closed, its owner sees it and retries.
     */
    msh_log_error("connection_dropped path=%s reason=\"out of descriptors\"", listener->path);
    if (listener->reserve_fd >= 0)
        close(listener->reserve_fd);
    fd = accept4(listener->source.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        close(fd);
    listener->reserve_fd = open_reserve();
    return result;
}
