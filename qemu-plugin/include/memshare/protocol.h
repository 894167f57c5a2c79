/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a client and the broker say to each other. docs/protocol.md tells it as a story.
 *
 * Two channels:
 *   socket  SOCK_SEQPACKET, one message a datagram, few: greeting, descriptors, segments.
 *   ring    shared memory, many: sightings, pages, grants. Two single-producer rings and a page area in
 *           one memfd sealed against resizing, one eventfd in each direction.
 *
 * All integers are in host byte order: both ends are on one host. Every number that crosses is
 * checked by the receiver before use, and read once: the other side can rewrite it at any time.
 */
#ifndef MEMSHARE_PROTOCOL_H
#define MEMSHARE_PROTOCOL_H

#include <assert.h>
#include <stdint.h>

#include "memshare/stats.h"

#define MSH_PROTOCOL_NEWEST 1u
#define MSH_PROTOCOL_OLDEST 1u
#define MSH_PROTOCOL_MAGIC 0x3148534du /* "MSH1" */
#define MSH_SECRET_BYTES 192u

/* Feature bits: what the sender can do; in force is what both can. */
#define MSH_FEATURE_EMPTYING 1ull /* EMPTYING may be sent */
#define MSH_FEATURE_LEFT 2ull     /* LEFT may be sent: WELCOME numbers the session */
#define MSH_FEATURES (MSH_FEATURE_EMPTYING | MSH_FEATURE_LEFT)

/*
 * Socket
 */
typedef enum MshMessageType {
    MSH_MESSAGE_HELLO = 1,     /* client: first message */
    MSH_MESSAGE_WELCOME = 2,   /* broker: with 4 descriptors, in the order below */
    MSH_MESSAGE_REFUSED = 3,   /* broker: why, then it closes */
    MSH_MESSAGE_SEGMENT = 4,   /* broker: with the read-only descriptor of a segment */
    MSH_MESSAGE_RETIRED = 5,   /* broker: no grant is left in that segment and none will come */
    MSH_MESSAGE_FORGOTTEN = 6, /* client: it has closed and unmapped that retired segment */
    MSH_MESSAGE_EMPTYING = 7, /* broker: no more grants there; sight again what is mapped from it */
    MSH_MESSAGE_LEFT = 8, /* client: nothing that its session of that number was granted is mapped, or will be */
} MshMessageType;

enum { /* descriptors of WELCOME */
    MSH_WELCOME_UFFD_DEVICE = 0, /* /dev/userfaultfd, open; USERFAULTFD_IOC_NEW makes one from it */
    MSH_WELCOME_RING = 1,
    MSH_WELCOME_TO_BROKER = 2, /* eventfd: the client writes it after it pushed requests */
    MSH_WELCOME_TO_CLIENT = 3, /* eventfd: the broker writes it after it pushed replies */
    MSH_WELCOME_DESCRIPTORS = 4,
};

typedef struct MshMessageHeader {
    uint32_t magic;
    uint16_t type;
    uint16_t length_bytes; /* of the whole message */
} MshMessageHeader;

typedef struct MshHello {
    MshMessageHeader header;
    uint32_t oldest, newest; /* protocol versions that the client speaks */
    uint64_t features;
    char guest_name[MSH_NAME_BYTES]; /* NUL-terminated; for people only, never for decisions */
} MshHello;

typedef struct MshWelcome {
    MshMessageHeader header;
    uint32_t version;
    uint32_t session; /* with MSH_FEATURE_LEFT: what the client will name it by when its connection is lost */
    uint64_t features;
    char group[MSH_NAME_BYTES];
    uint8_t secret[MSH_SECRET_BYTES]; /* key of the group's page hash */
} MshWelcome;

typedef struct MshRefused {
    MshMessageHeader header;
    char reason[MSH_TEXT_BYTES];
} MshRefused;

typedef struct MshSegmentNotice { /* SEGMENT, RETIRED, FORGOTTEN, EMPTYING */
    MshMessageHeader header;
    uint32_t segment;
    uint32_t reserved;
} MshSegmentNotice;

typedef struct MshSessionNotice { /* LEFT */
    MshMessageHeader header;
    uint32_t session;
    uint32_t reserved;
} MshSessionNotice;

#define MSH_MESSAGE_BYTES_MAX 512u

/*
 * Ring
 */
#define MSH_RING_ENTRIES 4096u    /* of each ring; a power of two */
#define MSH_RING_OUTSTANDING 1024u /* requests a client may have unanswered; the rest of the reply ring is
                                     room for hints, which are dropped when it is full */
#define MSH_RING_PAGES 256u       /* of the page area */

typedef enum MshRequestOp {
    MSH_REQUEST_SIGHT = 1,   /* hash, frame: I have this page. One reply: NEW, PROVIDE or MATCH */
    MSH_REQUEST_PROVIDE = 2, /* hash, frame, page: its bytes are in the page area. One reply: MATCH,
                                or NEW when the bytes do not have that hash or the store is full */
    MSH_REQUEST_RELEASE = 3, /* slot: one grant of mine ends. No reply */
    MSH_REQUEST_ACCOUNT = 4, /* One reply: ACCOUNT */
} MshRequestOp;

typedef enum MshReplyOp {
    MSH_REPLY_NEW = 1,     /* frame: nothing to share with */
    MSH_REPLY_PROVIDE = 2, /* frame: seen before elsewhere; send its bytes */
    MSH_REPLY_MATCH = 3,   /* frame, slot: granted; the segment's descriptor came over the socket before */
    MSH_REPLY_HINT = 4,    /* frame, slot: as MATCH, unasked: a page sighted earlier now has a slot */
    MSH_REPLY_ACCOUNT = 5, /* value: this client's fair part of the store in bytes, dead slots included;
                              missed: changes when the client should sight its pages again, as the
                              table has forgotten some or a hint was lost */
} MshReplyOp;

typedef struct MshRequest {
    uint64_t hash;
    uint32_t frame; /* the client's own numbering; the broker only echoes it */
    uint32_t slot;
    uint16_t op;
    uint16_t page; /* index in the page area */
    uint32_t reserved;
} MshRequest;

typedef struct MshReply {
    uint64_t value;
    uint32_t frame;
    union {
        uint32_t slot;
        uint32_t missed;
    };
    uint16_t op;
    uint16_t reserved[3];
} MshReply;

/* Head and tail count entries ever pushed and popped; each is written by one side only. They are
 * accessed with C11 atomics (release on write, acquire on read). */
typedef struct MshRingIndex {
    _Alignas(64) uint32_t pushed; /* by the producer */
    _Alignas(64) uint32_t popped; /* by the consumer */
} MshRingIndex;

typedef struct MshRingMemory {
    MshRingIndex request_index;
    MshRingIndex reply_index;
    _Alignas(4096) MshRequest requests[MSH_RING_ENTRIES];
    _Alignas(4096) MshReply replies[MSH_RING_ENTRIES];
    _Alignas(4096) uint8_t pages[MSH_RING_PAGES][4096];
} MshRingMemory;

static_assert(sizeof(MshMessageHeader) == 8, "wire layout");
static_assert(sizeof(MshHello) == 88, "wire layout");
static_assert(sizeof(MshWelcome) == 280, "wire layout");
static_assert(sizeof(MshRefused) == 200, "wire layout");
static_assert(sizeof(MshSegmentNotice) == 16, "wire layout");
static_assert(sizeof(MshSessionNotice) == 16, "wire layout");
static_assert(sizeof(MshRequest) == 24, "wire layout");
static_assert(sizeof(MshReply) == 24, "wire layout");
static_assert(sizeof(MshRingMemory) % 4096 == 0, "wire layout");

#endif
