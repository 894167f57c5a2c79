/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages to one client over its socket, without ever waiting for it. What does not fit into the
 * socket's buffer is kept: at most one SEGMENT (its descriptor is dear) and a bounded number of
 * EMPTYING and RETIRED. A kept SEGMENT goes first: it may be the very one that they are about.
 */
#ifndef MSH_OUTBOX_H
#define MSH_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>

#include "codec.h"

typedef struct MshKeptNotice { /* EMPTYING or RETIRED */
    MshMessageType type;
    uint32_t segment;
} MshKeptNotice;

typedef struct MshOutbox {
    int segment_fd; /* -1: none kept */
    uint32_t segment;
    MshKeptNotice *notices; /* in the order in which they came up */
    size_t notices_count;
} MshOutbox;

void msh_outbox_init(MshOutbox *outbox);
void msh_outbox_fini(MshOutbox *outbox);

bool msh_outbox_is_empty(const MshOutbox *outbox);
bool msh_outbox_keeps_a_segment(const MshOutbox *outbox);
bool msh_outbox_keeps(const MshOutbox *outbox, uint32_t segment);

/* All: 0 sent · -EAGAIN kept, flush when the socket is writable · other -errno: the client is gone
 * or does not read (-EMSGSIZE). */
int msh_outbox_send_segment(MshOutbox *outbox, int socket_fd, uint32_t segment, int segment_fd);
int msh_outbox_send_notice(MshOutbox *outbox, int socket_fd, MshMessageType type, uint32_t segment);
int msh_outbox_flush(MshOutbox *outbox, int socket_fd);

/* Seals and sends one message with descriptors, which stay the caller's. 0 or -errno. */
int msh_outbox_post(int socket_fd, MshMessage *message, MshMessageType type, const int *fds,
                    unsigned fd_count);

#endif
