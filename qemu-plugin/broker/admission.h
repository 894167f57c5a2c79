/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who may connect to which group, and who a peer is.
 *
 * libvirt runs all guests under one uid, so a socket's mode cannot keep tenants apart. Each guest
 * is announced (uuid, group, cgroup); a peer is let in when its own cgroup is an announced one of
 * that group, or below it. The root cgroup announced admits processes in the root cgroup only, not
 * all.
 *
 * A peer is the process that called connect(), named by pidfd: a pid alone may be another process
 * by the time its cgroup is read.
 */
#ifndef MSH_ADMISSION_H
#define MSH_ADMISSION_H

#include <stdbool.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "memshare/error.h"
#include "memshare/stats.h"

typedef struct MshPeer {
    int pidfd; /* owned by whoever holds the MshPeer */
    pid_t pid; /* for messages, and while pidfd says that it lives */
    uid_t uid;
} MshPeer;

#define MSH_UUID_TEXT_BYTES 37

/* An announced guest. To be read only, by who lists them. */
typedef struct MshAllowed {
    TAILQ_ENTRY(MshAllowed) link;
    char uuid[MSH_UUID_TEXT_BYTES];
    char group[MSH_NAME_BYTES];
    char *cgroup;
} MshAllowed;

typedef struct MshAdmission {
    bool by_mode; /* whoever could open the socket may connect */
    TAILQ_HEAD(, MshAllowed) allowed;
} MshAdmission;

/* 0, or -errno: this kernel cannot name a peer by pidfd. */
int msh_peer_probe(MshError *error);

int msh_peer_identify(int socket_fd, MshPeer *ret_peer, MshError *error);
bool msh_peer_lives(const MshPeer *peer);

void msh_admission_init(MshAdmission *admission, bool by_mode);
void msh_admission_fini(MshAdmission *admission);

/*
 * Announces a guest. One announced before under that uuid is replaced, and so is one with that cgroup:
 * it has ended, or its cgroup would not have been given anew. -EINVAL.
 */
int msh_admission_allow(MshAdmission *admission, const char *uuid, const char *group,
                        const char *cgroup, MshError *error);
/* -ENOENT, -EINVAL */
int msh_admission_forget(MshAdmission *admission, const char *uuid, MshError *error);
void msh_admission_forget_group(MshAdmission *admission, const char *group);

/* 0, or -EACCES and why. */
int msh_admission_check(const MshAdmission *admission, const char *group, const MshPeer *peer,
                        MshError *error);

#endif
