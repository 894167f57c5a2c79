/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Socket messages of protocol.h to and from bytes, every length and number checked. Pure.
 */
#ifndef MSH_CODEC_H
#define MSH_CODEC_H

#include <stddef.h>

#include "memshare/error.h"
#include "memshare/protocol.h"

typedef union MshMessage {
    MshMessageHeader header;
    MshHello hello;
    MshWelcome welcome;
    MshRefused refused;
    MshSegmentNotice segment;
    MshSessionNotice left;
} MshMessage;

/* Copies one datagram into *ret_message, by its type, with its texts NUL-terminated and printable.
 * -EBADMSG, error says what is wrong with it (too short, bad magic, unknown type, wrong length, text
 * without end, segment out of range). */
int msh_message_decode(const void *bytes, size_t length_bytes, MshMessage *ret_message,
                       MshError *error);

/* Fills magic, type and length of a message of that type and returns its length in bytes. */
size_t msh_message_seal(MshMessage *message, MshMessageType type);

/* The version both sides speak, the newest, or -EPROTONOSUPPORT. */
int msh_protocol_choose(uint32_t oldest, uint32_t newest);

/* 0, or -EINVAL: 1 to 63 of [a-z0-9._-], not starting with a dot. error names the name. */
int msh_group_name_check(const char *name, MshError *error);

#endif
