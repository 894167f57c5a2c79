/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Socket messages. The sender may be hostile: nothing of a datagram is used before its check, and
 * texts leave here safe to print.
 */
#include "codec.h"

#include <errno.h>
#include <string.h>

#include "memshare/units.h"

/* 0 for an unknown type. */
static uint16_t length_of_type(uint16_t type)
{
    switch (type) {
    case MSH_MESSAGE_HELLO:
        return sizeof(MshHello);
    case MSH_MESSAGE_WELCOME:
        return sizeof(MshWelcome);
    case MSH_MESSAGE_REFUSED:
        return sizeof(MshRefused);
    case MSH_MESSAGE_SEGMENT:
    case MSH_MESSAGE_RETIRED:
    case MSH_MESSAGE_FORGOTTEN:
    case MSH_MESSAGE_EMPTYING:
        return sizeof(MshSegmentNotice);
    case MSH_MESSAGE_LEFT:
        return sizeof(MshSessionNotice);
    default:
        return 0;
    }
}

static bool is_printable(char c)
{
    return c >= ' ' && c <= '~';
}

/* Replaces what a terminal or a log could trip over. */
static int text_clean(char *text, size_t capacity_bytes, const char *what, MshError *error)
{
    char *end = memchr(text, '\0', capacity_bytes);
    if (!end)
        return msh_error_set(error, -EBADMSG, "message: %s has no end", what);
    for (char *c = text; c < end; c++) {
        if (!is_printable(*c))
            *c = '?';
    }
    return 0;
}

static int body_check(MshMessage *message, MshError *error)
{
    switch (message->header.type) {
    case MSH_MESSAGE_HELLO:
        return text_clean(message->hello.guest_name, sizeof(message->hello.guest_name),
                          "guest name", error);
    case MSH_MESSAGE_WELCOME:
        return text_clean(message->welcome.group, sizeof(message->welcome.group), "group", error);
    case MSH_MESSAGE_REFUSED:
        return text_clean(message->refused.reason, sizeof(message->refused.reason), "reason",
                          error);
    case MSH_MESSAGE_LEFT:
        return 0; /* any number may be one that a session had */
    default:
        if (message->segment.segment >= MSH_SEGMENTS_MAX)
            return msh_error_set(error, -EBADMSG, "message: segment %u is out of range",
                                 message->segment.segment);
        return 0;
    }
}

int msh_message_decode(const void *bytes, size_t length_bytes, MshMessage *ret_message,
                       MshError *error)
{
    MshMessage message = {0};

    if (length_bytes < sizeof(message.header))
        return msh_error_set(error, -EBADMSG, "message: %zu bytes are too short", length_bytes);
    memcpy(&message.header, bytes, sizeof(message.header));
    if (message.header.magic != MSH_PROTOCOL_MAGIC)
        return msh_error_set(error, -EBADMSG, "message: bad magic 0x%08x", message.header.magic);
    uint16_t expected_bytes = length_of_type(message.header.type);
    if (expected_bytes == 0)
        return msh_error_set(error, -EBADMSG, "message: unknown type %u", message.header.type);
    if (length_bytes != expected_bytes || message.header.length_bytes != expected_bytes)
        return msh_error_set(
            error, -EBADMSG, "message: type %u is %u bytes long, not %zu (says %u)",
            message.header.type, expected_bytes, length_bytes, message.header.length_bytes);
    memcpy(&message, bytes, length_bytes);
    int r = body_check(&message, error);
    if (r < 0)
        return r;
    *ret_message = message;
    return 0;
}

size_t msh_message_seal(MshMessage *message, MshMessageType type)
{
    message->header = (MshMessageHeader){
        .magic = MSH_PROTOCOL_MAGIC,
        .type = (uint16_t)type,
        .length_bytes = length_of_type((uint16_t)type),
    };
    return message->header.length_bytes;
}

int msh_protocol_choose(uint32_t oldest, uint32_t newest)
{
    uint32_t common = newest < MSH_PROTOCOL_NEWEST ? newest : MSH_PROTOCOL_NEWEST;
    if (common < oldest || common < MSH_PROTOCOL_OLDEST)
        return -EPROTONOSUPPORT;
    return (int)common;
}

int msh_group_name_check(const char *name, MshError *error)
{
    size_t length = strnlen(name, MSH_NAME_BYTES);

    /* Also a file name under /run/memshare: no slash, nothing hidden, no "..". */
    if (length == 0 || length >= MSH_NAME_BYTES)
        return msh_error_set(error, -EINVAL, "group name: 1 to %d characters, not %s",
                             MSH_NAME_BYTES - 1, length ? "more" : "none");
    if (name[0] == '.' || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != length) {
        char shown[MSH_NAME_BYTES];
        for (size_t i = 0; i <= length; i++)
            shown[i] = is_printable(name[i]) || i == length ? name[i] : '?';
        return msh_error_set(error, -EINVAL,
                             "group name '%s': only a-z 0-9 . _ -, not starting with a dot", shown);
    }
    return 0;
}
