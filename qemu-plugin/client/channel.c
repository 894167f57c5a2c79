/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An exchange with the broker: one socket, one ring (protocol.h). A broker that is absent, slow, dies
 * or lies costs sharing, never a byte: whatever it says is checked, and the comparison in the window
 * decides. On any doubt the connection is dropped and tried again with back-off. I7
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "codec.h"
#include "exchange.h"
#include "ring.h"

#define BACKOFF_MIN_NS 100000000ull
#define BACKOFF_MAX_NS 10000000000ull
/* A broker that leaves a question unanswered for so long is taken for dead. */
#define ANSWER_TIMEOUT_NS 10000000000ull

enum { LOST_MAX = 16 }; /* a broker keeps no more sessions of one process */

typedef enum Phase { AWAY, GREETING, READY, BARRED } Phase;

typedef struct MshChannel {
    MshExchange exchange;
    struct sockaddr_un address;
    char group[MSH_NAME_BYTES];
    char guest_name[MSH_NAME_BYTES];
    Phase phase;
    int socket, to_broker, to_client;
    MshRingEnd ring;
    uint32_t unanswered;
    uint64_t retry_ns, backoff_ns, greeted_ns;
    bool has_account;
    MshAccount account;
    uint32_t session;             /* the broker's number of this connection, if can_leave */
    bool can_leave;
    uint32_t lost[LOST_MAX]; /* numbers of earlier ones, whose grants a broker that lives on still counts */
    size_t lost_count;
    uint32_t forgotten[MSH_VIEWS_MAX]; /* segments that are closed, of which the broker is to be told */
    size_t forgotten_count;
    char refusal[MSH_TEXT_BYTES]; /* what the broker said when it ended the connection */
    /* Pages that the broker has asked for, while their sightings are still with us. */
    uint32_t wanted[MSH_RING_OUTSTANDING];
    size_t wanted_count;
} MshChannel;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void drop(MshChannel *channel, const char *why)
{
    snprintf(channel->exchange.why, sizeof channel->exchange.why, "%s", why);
    bool was_ready = channel->phase == READY;
    close_fd(&channel->socket);
    close_fd(&channel->to_broker);
    close_fd(&channel->to_client);
    if (channel->ring.memory)
        munmap(channel->ring.memory, sizeof *channel->ring.memory);
    channel->ring.memory = NULL;
    channel->unanswered = 0;
    channel->wanted_count = 0;
    channel->forgotten_count = 0;
    channel->has_account = false;
    channel->phase = channel->phase == BARRED ? BARRED : AWAY;
    channel->exchange.protocol = 0;
    channel->backoff_ns = was_ready ? BACKOFF_MIN_NS : channel->backoff_ns * 2;
    if (channel->backoff_ns > BACKOFF_MAX_NS)
        channel->backoff_ns = BACKOFF_MAX_NS;
    channel->retry_ns = now_ns() + channel->backoff_ns;
    if (was_ready) {
        if (channel->can_leave && channel->lost_count < LOST_MAX)
            channel->lost[channel->lost_count++] = channel->session;
        msh_views_new_source(channel->exchange.views);
        channel->exchange.events.disconnected(channel->exchange.events.opaque);
    }
}

/* Drops it for what a call has returned. Done by those at the outside alone: further in, others are still
 * at work with the ring. */
static void drop_for(MshChannel *channel, int result)
{
    drop(channel, result == -ECONNREFUSED                   ? channel->refusal
                  : result == -EPROTO || result == -EBADMSG ? "the broker broke the protocol"
                  : result == -ETIMEDOUT                    ? "the broker does not answer"
                                                            : "the connection to the broker broke");
}

static int send_message(MshChannel *channel, MshMessage *message, MshMessageType type)
{
    size_t length = msh_message_seal(message, type);
    ssize_t sent = send(channel->socket, message, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == (ssize_t)length)
        return 0;
    return sent < 0 && errno == EAGAIN ? -EAGAIN : -EPIPE;
}

static void greet(MshChannel *channel)
{
    channel->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    MshMessage hello = {.hello = {.oldest = MSH_PROTOCOL_OLDEST,
                                  .newest = MSH_PROTOCOL_NEWEST,
                                  .features = MSH_FEATURES}};
    memcpy(hello.hello.guest_name, channel->guest_name, sizeof hello.hello.guest_name);
    if (channel->socket < 0 ||
        connect(channel->socket, (struct sockaddr *)&channel->address, sizeof channel->address) < 0 ||
        send_message(channel, &hello, MSH_MESSAGE_HELLO) < 0) {
        char why[MSH_TEXT_BYTES];
        snprintf(why, sizeof why, "no broker at %.120s: %s", channel->address.sun_path,
                 strerror(errno));
        drop(channel, why);
        return;
    }
    channel->phase = GREETING;
    channel->greeted_ns = now_ns();
}

/* Of one that can shrink, the kernel kills who touches what is no more. */
static bool cannot_shrink(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK);
}

/* Takes the descriptors over in every case. */
static int welcome(MshChannel *channel, const MshWelcome *message, int fds[MSH_WELCOME_DESCRIPTORS])
{
    struct stat status;
    bool fits = message->version >= MSH_PROTOCOL_OLDEST && message->version <= MSH_PROTOCOL_NEWEST &&
                strcmp(message->group, channel->group) == 0 &&
                cannot_shrink(fds[MSH_WELCOME_RING]) &&
                fstat(fds[MSH_WELCOME_RING], &status) == 0 &&
                status.st_size == (off_t)sizeof(MshRingMemory);
    void *memory = MAP_FAILED;
    if (fits)
        memory = mmap(NULL, sizeof(MshRingMemory), PROT_READ | PROT_WRITE, MAP_SHARED,
                      fds[MSH_WELCOME_RING], 0);
    close_fd(&fds[MSH_WELCOME_RING]);
    channel->to_broker = fds[MSH_WELCOME_TO_BROKER];
    channel->to_client = fds[MSH_WELCOME_TO_CLIENT];
    if (memory == MAP_FAILED) {
        close_fd(&fds[MSH_WELCOME_UFFD_DEVICE]);
        return -EPROTO;
    }
    madvise(memory, sizeof(MshRingMemory), MADV_DONTFORK);
    msh_ring_init(&channel->ring, memory);
    int result = channel->exchange.events.connected(
        channel->exchange.events.opaque, message->secret, fds[MSH_WELCOME_UFFD_DEVICE]);
    close_fd(&fds[MSH_WELCOME_UFFD_DEVICE]);
    if (result < 0) {
        channel->phase = BARRED;
        return result;
    }
    channel->phase = READY;
    channel->exchange.protocol = message->version;
    channel->session = message->session;
    channel->can_leave = message->features & MSH_FEATURE_LEFT;
    return 0;
}

/* One datagram. 0 · -EAGAIN none there · else the connection is no good. */
static int receive_message(MshChannel *channel)
{
    char bytes[MSH_MESSAGE_BYTES_MAX];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MSH_WELCOME_DESCRIPTORS)];
    } control;
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};
    struct msghdr envelope = {.msg_iov = &part,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof control};
    ssize_t length = recvmsg(channel->socket, &envelope, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (length <= 0)
        return length < 0 && (errno == EAGAIN || errno == EINTR) ? -EAGAIN : -ECONNRESET;

    int fds[MSH_WELCOME_DESCRIPTORS] = {-1, -1, -1, -1};
    size_t fd_count = 0;
    for (struct cmsghdr *part_header = CMSG_FIRSTHDR(&envelope); part_header;
         part_header = CMSG_NXTHDR(&envelope, part_header)) {
        if (part_header->cmsg_level == SOL_SOCKET && part_header->cmsg_type == SCM_RIGHTS) {
            fd_count = (part_header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(part_header), fd_count * sizeof(int));
        }
    }
    MshMessage message;
    int result = msh_message_decode(bytes, (size_t)length, &message, NULL);
    if (envelope.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        result = -EBADMSG;
    MshMessageType type = result == 0 ? message.header.type : 0;
    uint32_t local;
    if (type == MSH_MESSAGE_WELCOME && channel->phase == GREETING &&
        fd_count == MSH_WELCOME_DESCRIPTORS)
        return welcome(channel, &message.welcome, fds);
    if (type == MSH_MESSAGE_SEGMENT && channel->phase == READY && fd_count == 1)
        return msh_views_find(channel->exchange.views, message.segment.segment, &local) == 0
                   ? (close(fds[0]), -EPROTO)
                   : msh_views_open(channel->exchange.views, message.segment.segment, fds[0],
                                    &local);
    for (size_t i = 0; i < fd_count; i++)
        close_fd(&fds[i]);
    if (type == MSH_MESSAGE_RETIRED && channel->phase == READY) {
        if (msh_views_find(channel->exchange.views, message.segment.segment, &local) == 0 &&
            msh_views_retire(channel->exchange.views, local))
            channel->exchange.events.emptying(channel->exchange.events.opaque);
        return 0;
    }
    if (type == MSH_MESSAGE_EMPTYING && channel->phase == READY) {
        if (msh_views_find(channel->exchange.views, message.segment.segment, &local) == 0 &&
            msh_views_leave(channel->exchange.views, local))
            channel->exchange.events.emptying(channel->exchange.events.opaque);
        return 0;
    }
    if (type == MSH_MESSAGE_REFUSED) {
        snprintf(channel->refusal, sizeof channel->refusal, "the broker refused: %.160s",
                 message.refused.reason);
        return -ECONNREFUSED;
    }
    return -EPROTO;
}

static int receive_messages(MshChannel *channel)
{
    int result;
    do
        result = receive_message(channel);
    while (result == 0);
    return result == -EAGAIN ? 0 : result;
}

static void signal_broker(MshChannel *channel)
{
    (void)eventfd_write(channel->to_broker, 1); /* fails only when it is signalled already */
}

static void wait_for(MshChannel *channel, int wake_fd, uint64_t timeout_ns)
{
    struct pollfd waits[3] = {
        {.fd = channel->to_client, .events = POLLIN},
        {.fd = channel->socket, .events = POLLIN},
        {.fd = wake_fd, .events = POLLIN},
    };
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    ppoll(waits, 3, &timeout, NULL);
    if (waits[0].revents & POLLIN) {
        eventfd_t ignored;
        eventfd_read(channel->to_client, &ignored);
    }
}

/* Releases have no answer that would bound how many are in the ring: any push may find it full of
 * them. The broker takes requests out whatever it still has to answer. */
static int wait_room(MshChannel *channel)
{
    uint64_t deadline_ns = 0;
    int room;
    while ((room = msh_ring_request_room(&channel->ring)) == 0) {
        signal_broker(channel);
        int result = receive_messages(channel);
        if (result < 0)
            return result;
        if (deadline_ns == 0)
            deadline_ns = now_ns() + ANSWER_TIMEOUT_NS;
        else if (now_ns() >= deadline_ns)
            return -ETIMEDOUT;
        wait_for(channel, -1, 1000000);
    }
    return room < 0 ? room : 0;
}

static int push(MshChannel *channel, const MshRequest *request)
{
    int result = wait_room(channel);
    return result < 0 ? result : msh_ring_push_request(&channel->ring, request);
}

static int give_back(MshChannel *channel, MshSlot remote)
{
    return push(channel, &(MshRequest){.op = MSH_REQUEST_RELEASE, .slot = remote.number});
}

static int take_match(MshChannel *channel, const MshReply *reply)
{
    MshExchange *exchange = &channel->exchange;
    MshSlot remote = {reply->slot};
    uint32_t local;
    if (msh_views_find(exchange->views, msh_slot_segment(remote), &local) < 0) {
        /* Its descriptor was sent before the reply: it waits in the socket. */
        int result = receive_messages(channel);
        if (result < 0)
            return result;
        if (msh_views_find(exchange->views, msh_slot_segment(remote), &local) < 0)
            return -EPROTO;
    }
    MshSlot slot = msh_slot(local, msh_slot_position(remote));
    if (msh_view_holds(exchange->views->view[local], slot))
        exchange->events.match(exchange->events.opaque, reply->frame, slot);
    else
        return give_back(channel, remote);
    return 0;
}

static int take_reply(MshChannel *channel, const MshReply *reply)
{
    if (reply->op == MSH_REPLY_HINT)
        return take_match(channel, reply);
    if (channel->unanswered == 0)
        return -EPROTO;
    channel->unanswered--;
    switch (reply->op) {
    case MSH_REPLY_NEW:
        return 0;
    case MSH_REPLY_PROVIDE:
        if (channel->wanted_count < MSH_RING_OUTSTANDING)
            channel->wanted[channel->wanted_count++] = reply->frame;
        return 0;
    case MSH_REPLY_MATCH:
        return take_match(channel, reply);
    case MSH_REPLY_ACCOUNT:
        channel->account = (MshAccount){.cost_bytes = reply->value, .missed = reply->missed};
        channel->has_account = true;
        return 0;
    default:
        return -EPROTO;
    }
}

static int take_replies(MshChannel *channel)
{
    MshReply reply;
    int result;
    while ((result = msh_ring_pop_reply(&channel->ring, &reply)) == 0) {
        result = take_reply(channel, &reply);
        if (result < 0)
            return result;
    }
    return result == MSH_E_RING_EMPTY ? 0 : result;
}

/* Until at most left requests are unanswered. */
static int wait_answers(MshChannel *channel, uint32_t left)
{
    uint64_t deadline_ns = now_ns() + ANSWER_TIMEOUT_NS;
    for (;;) {
        int result = take_replies(channel);
        if (result < 0)
            return result;
        if (channel->unanswered <= left)
            return 0;
        result = receive_messages(channel);
        if (result < 0)
            return result;
        uint64_t now = now_ns();
        if (now >= deadline_ns)
            return -ETIMEDOUT;
        wait_for(channel, -1, deadline_ns - now);
    }
}

/* Sends one message for each number, from the last one on, as many as its socket takes. 0 or -EPIPE */
static int tell(MshChannel *channel, MshMessageType type, const uint32_t *numbers, size_t *count)
{
    int result = 0;
    while (*count > 0 && result == 0) {
        MshMessage message = {0};
        if (type == MSH_MESSAGE_LEFT)
            message.left.session = numbers[*count - 1];
        else
            message.segment.segment = numbers[*count - 1];
        result = send_message(channel, &message, type);
        *count -= result == 0;
    }
    return result == -EAGAIN ? 0 : result;
}

/* What is over: segments that are closed, and earlier connections, once nothing is left of what they gave us. (The
 * broker may be another one by now, to which their numbers mean nothing.) 0 or -EPIPE */
static int tell_ends(MshChannel *channel)
{
    int result = tell(channel, MSH_MESSAGE_FORGOTTEN, channel->forgotten, &channel->forgotten_count);
    if (result == 0 && channel->lost_count > 0 && channel->can_leave &&
        !msh_views_has_lost(channel->exchange.views))
        result = tell(channel, MSH_MESSAGE_LEFT, channel->lost, &channel->lost_count);
    return result;
}

static bool channel_poll(MshExchange *exchange)
{
    MshChannel *channel = (MshChannel *)exchange;
    if (channel->phase == AWAY && now_ns() >= channel->retry_ns)
        greet(channel);
    if (channel->phase == GREETING && now_ns() - channel->greeted_ns > ANSWER_TIMEOUT_NS)
        drop(channel, "the broker does not answer");
    if (channel->phase == GREETING || channel->phase == READY) {
        int result = receive_messages(channel);
        if (result == 0 && channel->phase == READY)
            result = take_replies(channel);
        if (result == 0 && channel->phase == READY)
            result = tell_ends(channel);
        if (result < 0)
            drop_for(channel, result);
    }
    return channel->phase == READY;
}

/* Sends the bytes of the pages that were asked for, and waits for the answers. */
static int provide(MshChannel *channel, const MshSighting *sightings, size_t count)
{
    MshExchangeEvents *events = &channel->exchange.events;
    size_t at = 0; /* the broker answers in order, so the wanted ones follow the sightings */
    uint16_t page = 0;
    for (size_t i = 0; i < channel->wanted_count; i++) {
        while (at < count && sightings[at].frame != channel->wanted[i])
            at++;
        if (at == count)
            return -EPROTO;
        if (page == MSH_RING_PAGES) {
            signal_broker(channel);
            int result = wait_answers(channel, 0);
            if (result < 0)
                return result;
            page = 0;
        }
        if (!events->copy_page(events->opaque, sightings[at].frame,
                               channel->ring.memory->pages[page]))
            continue;
        MshRequest request = {.op = MSH_REQUEST_PROVIDE,
                              .hash = sightings[at].hash,
                              .frame = sightings[at].frame,
                              .page = page};
        int result = push(channel, &request);
        if (result < 0)
            return result;
        channel->unanswered++;
        page++;
    }
    channel->wanted_count = 0;
    if (page == 0)
        return 0;
    signal_broker(channel);
    return wait_answers(channel, 0);
}

static void channel_sight(MshExchange *exchange, const MshSighting *sightings, size_t count)
{
    MshChannel *channel = (MshChannel *)exchange;
    for (size_t at = 0; at < count && channel->phase == READY;) {
        size_t batch = count - at < MSH_RING_OUTSTANDING ? count - at : MSH_RING_OUTSTANDING;
        int result = 0;
        for (size_t i = 0; i < batch && result == 0; i++) {
            MshRequest request = {.op = MSH_REQUEST_SIGHT,
                                  .hash = sightings[at + i].hash,
                                  .frame = sightings[at + i].frame};
            result = push(channel, &request);
            channel->unanswered += result == 0;
        }
        signal_broker(channel);
        if (result == 0)
            result = wait_answers(channel, 0);
        if (result == 0)
            result = provide(channel, sightings + at, batch);
        if (result < 0)
            drop_for(channel, result);
        at += batch;
    }
}

static void channel_release(MshExchange *exchange, const MshSlot *slots, size_t count)
{
    MshChannel *channel = (MshChannel *)exchange;
    if (channel->phase != READY)
        return;
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        const MshView *view = msh_views_of(exchange->views, slots[i]);
        /* Grants of an earlier broker ended with it. */
        if (!view || view->source != exchange->views->source)
            continue;
        int result =
            give_back(channel, msh_slot(view->segment, msh_slot_position(slots[i])));
        if (result < 0) {
            drop_for(channel, result);
            return;
        }
        any = true;
    }
    if (any)
        signal_broker(channel);
}

static bool channel_account(MshExchange *exchange, MshAccount *ret_account)
{
    MshChannel *channel = (MshChannel *)exchange;
    if (channel->phase != READY)
        return false;
    channel->has_account = false;
    int result = push(channel, &(MshRequest){.op = MSH_REQUEST_ACCOUNT});
    if (result == 0) {
        channel->unanswered++;
        signal_broker(channel);
        result = wait_answers(channel, 0);
    }
    if (result < 0) {
        drop_for(channel, result);
        return false;
    }
    *ret_account = channel->account;
    return channel->has_account;
}

static void channel_forget(MshExchange *exchange, uint32_t segment)
{
    MshChannel *channel = (MshChannel *)exchange;
    if (channel->phase != READY)
        return;
    if (channel->forgotten_count < MSH_VIEWS_MAX) /* said with the next poll: the broker's socket may be full, and others wait */
        channel->forgotten[channel->forgotten_count++] = segment;
    else
        drop(channel, "the broker does not take messages");
}

static void channel_wait(MshExchange *exchange, int wake_fd, uint64_t timeout_ns)
{
    MshChannel *channel = (MshChannel *)exchange;
    if (channel->phase == AWAY) {
        uint64_t now = now_ns();
        uint64_t until_retry_ns = channel->retry_ns > now ? channel->retry_ns - now : 0;
        if (until_retry_ns < timeout_ns)
            timeout_ns = until_retry_ns;
    }
    wait_for(channel, wake_fd, timeout_ns);
}

static MshExchange *channel_free(MshExchange *exchange)
{
    MshChannel *channel = (MshChannel *)exchange;
    channel->phase = BARRED; /* no one is told any more */
    drop(channel, "");
    free(channel);
    return NULL;
}

int msh_channel_new(const char *socket_path, const char *group, const char *guest_name,
                    MshViews *views, const MshExchangeEvents *events, MshExchange **ret_exchange,
                    MshError *error)
{
    static const MshExchangeVerbs verbs = {
        .poll = channel_poll,
        .sight = channel_sight,
        .release = channel_release,
        .account = channel_account,
        .forget = channel_forget,
        .wait = channel_wait,
        .free = channel_free,
    };
    MshChannel *channel = calloc(1, sizeof *channel);
    if (!channel)
        return msh_error_set(error, -ENOMEM, "out of memory");
    channel->exchange = (MshExchange){.verbs = &verbs, .events = *events, .views = views};
    channel->address.sun_family = AF_UNIX;
    channel->socket = channel->to_broker = channel->to_client = -1;
    channel->backoff_ns = BACKOFF_MIN_NS / 2;
    if (strlen(socket_path) == 0 || strlen(socket_path) >= sizeof channel->address.sun_path) {
        free(channel);
        return msh_error_set(error, -EINVAL,
                             "socket path '%s' must have 1 to %zu characters", socket_path,
                             sizeof channel->address.sun_path - 1);
    }
    snprintf(channel->address.sun_path, sizeof channel->address.sun_path, "%s", socket_path);
    snprintf(channel->group, sizeof channel->group, "%s", group);
    snprintf(channel->guest_name, sizeof channel->guest_name, "%s", guest_name);
    *ret_exchange = &channel->exchange;
    return 0;
}
