/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See admission.h.
 */
#include "admission.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel_abi.h"

#define CGROUP_BYTES 4096

/*
 * Peers
 */

static int open_peer_pidfd(int socket_fd, int *ret_pidfd)
{
    int pidfd = -1;
    socklen_t length_bytes = sizeof(pidfd);

    if (getsockopt(socket_fd, SOL_SOCKET, MSH_SO_PEERPIDFD, &pidfd, &length_bytes) < 0)
        return -errno;
    *ret_pidfd = pidfd;
    return 0;
}

int msh_peer_probe(MshError *error)
{
    int pair[2], pidfd = -1, result;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return msh_error_set(error, -errno, "socketpair: %s", strerror(errno));
    result = open_peer_pidfd(pair[0], &pidfd);
    if (result == 0)
        close(pidfd);
    else
        msh_error_set(
            error, result,
            "this kernel cannot name a socket's peer process (SO_PEERPIDFD, Linux 6.5): %s",
            strerror(-result));
    close(pair[0]);
    close(pair[1]);
    return result;
}

int msh_peer_identify(int socket_fd, MshPeer *ret_peer, MshError *error)
{
    struct ucred credentials;
    socklen_t length_bytes = sizeof(credentials);
    int pidfd = -1, result;

    if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length_bytes) < 0)
        return msh_error_set(error, -errno, "SO_PEERCRED: %s", strerror(errno));
    result = open_peer_pidfd(socket_fd, &pidfd);
    if (result < 0)
        return msh_error_set(error, result, "SO_PEERPIDFD: %s", strerror(-result));
    *ret_peer = (MshPeer){.pidfd = pidfd, .pid = credentials.pid, .uid = credentials.uid};
    return 0;
}

bool msh_peer_lives(const MshPeer *peer)
{
    struct pollfd poll_fd = {.fd = peer->pidfd, .events = POLLIN};

    return poll(&poll_fd, 1, 0) == 0;
}

/* The line of the unified hierarchy, "0::PATH". */
static int read_cgroup(const MshPeer *peer, char ret_cgroup[CGROUP_BYTES], MshError *error)
{
    char path[64], text[2 * CGROUP_BYTES], *line, *next;
    ssize_t got;
    size_t used = 0;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)peer->pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return msh_error_set(error, -EACCES, "cannot read %s: %s", path, strerror(errno));
    while ((got = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
        used += (size_t)got;
    close(fd);
    text[used] = '\0';
    /* Alive after the read, so the pid was still this process when it was read. */
    if (!msh_peer_lives(peer))
        return msh_error_set(error, -EACCES, "process %d has ended", (int)peer->pid);
    for (line = text; line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next == NULL)
            break; /* cut short, or the end */
        *next++ = '\0';
        if (strncmp(line, "0::/", 4) == 0 && strlen(line + 3) < CGROUP_BYTES) {
            memcpy(ret_cgroup, line + 3, strlen(line + 3) + 1);
            return 0;
        }
    }
    return msh_error_set(error, -EACCES, "process %d has no cgroup v2", (int)peer->pid);
}

/*
 * Announced guests
 */

void msh_admission_init(MshAdmission *admission, bool by_mode)
{
    admission->by_mode = by_mode;
    TAILQ_INIT(&admission->allowed);
}

static void drop(MshAdmission *admission, MshAllowed *allowed)
{
    TAILQ_REMOVE(&admission->allowed, allowed, link);
    free(allowed->cgroup);
    free(allowed);
}

void msh_admission_fini(MshAdmission *admission)
{
    MshAllowed *allowed;

    while ((allowed = TAILQ_FIRST(&admission->allowed)) != NULL)
        drop(admission, allowed);
}

static int check_uuid(const char *uuid, MshError *error)
{
    bool good = strlen(uuid) == MSH_UUID_TEXT_BYTES - 1;

    for (size_t i = 0; good && i < MSH_UUID_TEXT_BYTES - 1; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23)
            good = uuid[i] == '-';
        else
            good = isxdigit((unsigned char)uuid[i]) != 0;
    }
    return good ? 0 : msh_error_set(error, -EINVAL, "uuid must be 36 characters of hex and dashes");
}

static MshAllowed *find(const MshAdmission *admission, const char *uuid)
{
    MshAllowed *allowed;

    TAILQ_FOREACH(allowed, &admission->allowed, link)
    {
        if (strcasecmp(allowed->uuid, uuid) == 0)
            return allowed;
    }
    return NULL;
}

static void forget_cgroup(MshAdmission *admission, const char *cgroup)
{
    MshAllowed *allowed = TAILQ_FIRST(&admission->allowed), *next;

    for (; allowed != NULL; allowed = next) {
        next = TAILQ_NEXT(allowed, link);
        if (strcmp(allowed->cgroup, cgroup) == 0)
            drop(admission, allowed);
    }
}

int msh_admission_allow(MshAdmission *admission, const char *uuid, const char *group,
                        const char *cgroup, MshError *error)
{
    size_t length_bytes = strlen(cgroup);
    MshAllowed *allowed, *before;
    int result = check_uuid(uuid, error);

    if (result < 0)
        return result;
    if (cgroup[0] != '/' || length_bytes >= CGROUP_BYTES || strchr(cgroup, '\n') != NULL)
        return msh_error_set(error, -EINVAL,
                             "cgroup must be a path from the cgroup v2 root, as in "
                             "/proc/PID/cgroup after 0::");
    while (length_bytes > 1 && cgroup[length_bytes - 1] == '/')
        length_bytes--;
    allowed = calloc(1, sizeof(*allowed));
    assert(allowed != NULL);
    memcpy(allowed->uuid, uuid, MSH_UUID_TEXT_BYTES);
    snprintf(allowed->group, sizeof(allowed->group), "%s", group);
    allowed->cgroup = strndup(cgroup, length_bytes);
    assert(allowed->cgroup != NULL);
    before = find(admission, uuid);
    if (before != NULL)
        drop(admission, before);
    forget_cgroup(admission, allowed->cgroup); /* I5: one cgroup is one guest, in one group */
    TAILQ_INSERT_TAIL(&admission->allowed, allowed, link);
    return 0;
}

int msh_admission_forget(MshAdmission *admission, const char *uuid, MshError *error)
{
    MshAllowed *allowed;
    int result = check_uuid(uuid, error);

    if (result < 0)
        return result;
    allowed = find(admission, uuid);
    if (allowed == NULL)
        return msh_error_set(error, -ENOENT, "no guest %s was announced", uuid);
    drop(admission, allowed);
    return 0;
}

void msh_admission_forget_group(MshAdmission *admission, const char *group)
{
    MshAllowed *allowed = TAILQ_FIRST(&admission->allowed), *next;

    for (; allowed != NULL; allowed = next) {
        next = TAILQ_NEXT(allowed, link);
        if (strcmp(allowed->group, group) == 0)
            drop(admission, allowed);
    }
}

/* Equal to the announced one, or below it: libvirt puts QEMU into children of the scope. Nothing is
 * below "/", for what follows it is never another slash. */
static bool covers(const char *announced, const char *cgroup)
{
    size_t length_bytes = strlen(announced);

    if (strcmp(announced, cgroup) == 0)
        return true;
    return strncmp(announced, cgroup, length_bytes) == 0 && cgroup[length_bytes] == '/';
}

int msh_admission_check(const MshAdmission *admission, const char *group, const MshPeer *peer,
                        MshError *error)
{
    char cgroup[CGROUP_BYTES];
    const MshAllowed *allowed;
    int result;

    if (admission->by_mode)
        return 0;
    result = read_cgroup(peer, cgroup, error);
    if (result < 0)
        return result;
    TAILQ_FOREACH(allowed, &admission->allowed, link)
    { /* I5 */
        if (strcmp(allowed->group, group) == 0 && covers(allowed->cgroup, cgroup))
            return 0;
    }
    return msh_error_set(error, -EACCES, "no guest in cgroup %.100s was announced for group %s",
                         cgroup, group);
}
