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

/* A client that leaves so many unread (256 GiB of store emptied and retired meanwhile) does not
 * read at all. */
#define NOTICES_MAX 8192

void msh_outbox_init(MshOutbox *outbox)
{
    *outbox = (MshOutbox){.segment_fd = -1};
}

void msh_outbox_fini(MshOutbox *outbox)
{
    if (outbox->segment_fd >= 0)
        close(outbox->segment_fd);
    free(outbox->notices);
    msh_outbox_init(outbox);
}

bool msh_outbox_is_empty(const MshOutbox *outbox)
{
    return outbox->segment_fd < 0 && outbox->notices_count == 0;
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

static int post_notice(int socket_fd, MshKeptNotice notice)
{
    MshMessage message = {.segment = {.segment = notice.segment}};

    return msh_outbox_post(socket_fd, &message, notice.type, NULL, 0);
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

int msh_outbox_send_notice(MshOutbox *outbox, int socket_fd, MshMessageType type, uint32_t segment)
{
    MshKeptNotice notice = {type, segment};
    int result = -EAGAIN;

    if (msh_outbox_is_empty(outbox))
        result = post_notice(socket_fd, notice);
    if (result != -EAGAIN)
        return result;
    if (outbox->notices == NULL) {
        outbox->notices = calloc(NOTICES_MAX, sizeof(*outbox->notices));
        assert(outbox->notices != NULL);
    }
    if (outbox->notices_count == NOTICES_MAX)
        return -EMSGSIZE;
    outbox->notices[outbox->notices_count++] = notice;
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
    while (result == 0 && sent < outbox->notices_count) {
        result = post_notice(socket_fd, outbox->notices[sent]);
        if (result == 0)
            sent++;
    }
    outbox->notices_count -= sent;
    if (outbox->notices_count > 0)
        memmove(outbox->notices, outbox->notices + sent,
                outbox->notices_count * sizeof(*outbox->notices));
    return result;
}
