/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See outbox.h.
 */
#include "outbox.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A client that leaves so many unread (256 GiB of store retired meanwhile) does not read at all. */
#define RETIRED_MAX 4096

void msh_outbox_init(MshOutbox *outbox)
{
    *outbox = (MshOutbox){.segment_fd = -1};
}

void msh_outbox_fini(MshOutbox *outbox)
{
    if (outbox->segment_fd >= 0)
        close(outbox->segment_fd);
    free(outbox->retired);
    msh_outbox_init(outbox);
}

bool msh_outbox_is_empty(const MshOutbox *outbox)
{
    return outbox->segment_fd < 0 && outbox->retired_count == 0;
}

bool msh_outbox_keeps_a_segment(const MshOutbox *outbox)
{
    return outbox->segment_fd >= 0;
}

bool msh_outbox_keeps(const MshOutbox *outbox, uint32_t segment)
{
    return outbox->segment_fd >= 0 && outbox->segment == segment;
}

int msh_outbox_post(int socket_fd, MshMessage *message, MshMessageType type, const int *fds,
                    unsigned fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * MSH_WELCOME_DESCRIPTORS)];
        struct cmsghdr align;
    } control;
    struct iovec part = {.iov_base = message, .iov_len = msh_message_seal(message, type)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    assert(fd_count <= MSH_WELCOME_DESCRIPTORS);
    if (fd_count > 0) {
        struct cmsghdr *rights;

        memset(&control, 0, sizeof(control));
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    return sendmsg(socket_fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int post_segment(int socket_fd, uint32_t segment, int segment_fd)
{
    MshMessage message = {.segment = {.segment = segment}};

    return msh_outbox_post(socket_fd, &message, MSH_MESSAGE_SEGMENT, &segment_fd, 1);
}

static int post_retired(int socket_fd, uint32_t segment)
{
    MshMessage message = {.segment = {.segment = segment}};

    return msh_outbox_post(socket_fd, &message, MSH_MESSAGE_RETIRED, NULL, 0);
}

int msh_outbox_send_segment(MshOutbox *outbox, int socket_fd, uint32_t segment, int segment_fd)
{
    int result = -EAGAIN;

    assert(outbox->segment_fd < 0);
    if (msh_outbox_is_empty(outbox))
        result = post_segment(socket_fd, segment, segment_fd);
    if (result == -EAGAIN) {
        outbox->segment = segment;
        outbox->segment_fd = segment_fd;
    } else {
        close(segment_fd);
    }
    return result;
}

int msh_outbox_send_retired(MshOutbox *outbox, int socket_fd, uint32_t segment)
{
    int result = -EAGAIN;

    if (msh_outbox_is_empty(outbox))
        result = post_retired(socket_fd, segment);
    if (result != -EAGAIN)
        return result;
    if (outbox->retired == NULL) {
        outbox->retired = calloc(RETIRED_MAX, sizeof(*outbox->retired));
        assert(outbox->retired != NULL);
    }
    if (outbox->retired_count == RETIRED_MAX)
        return -EMSGSIZE;
    outbox->retired[outbox->retired_count++] = segment;
    return -EAGAIN;
}

int msh_outbox_flush(MshOutbox *outbox, int socket_fd)
{
    size_t sent = 0;
    int result = 0;

    if (outbox->segment_fd >= 0) {
        result = post_segment(socket_fd, outbox->segment, outbox->segment_fd);
        if (result < 0)
            return result;
        close(outbox->segment_fd);
        outbox->segment_fd = -1;
    }
    while (result == 0 && sent < outbox->retired_count) {
        result = post_retired(socket_fd, outbox->retired[sent]);
        if (result == 0)
            sent++;
    }
    outbox->retired_count -= sent;
    if (outbox->retired_count > 0)
        memmove(outbox->retired, outbox->retired + sent,
                outbox->retired_count * sizeof(*outbox->retired));
    return result;
}
