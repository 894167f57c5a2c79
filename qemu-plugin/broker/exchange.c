/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See exchange.h.
 *
 * Both eventfds are shared open files: a client can make them blocking, or fill them, at any time.
 * So the one it rings is never read (an edge-triggered epoll event tells as much), and the one rung
 * for it is written under an alarm that ends a write which blocks.
 */
#include "exchange.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <unistd.h>

#define REQUESTS_A_TURN 1024u
/* A turn that has cost so much ends too: others wait meanwhile. */
#define COST_A_TURN 16384u
/* So many are taken from the ring at once, so that the table's entries are on their way when it is asked. */
#define REQUESTS_AT_ONCE 16u

/* Quota, in requests: well above what an engine can hash, and dearer verbs count for more. ACCOUNT
 * walks the slots of the store; a bell without requests costs a wake. */
#define QUOTA_PER_SECOND 2000000u
#define QUOTA_BURST 500000u
#define PROVIDE_COST 4u
#define ACCOUNT_COST 50000u
#define DOORBELL_COST 4u

/* Wrong releases that may be an engine's mistake; more are not. */
#define BAD_RELEASES_MAX 64u

/* Short: a write that does not block is never broken off by it, and others wait for one that does. */
#define BELL_ALARM_US 2000

static bool may_be_served(const MshSession *session)
{
    return session->state == MSH_SESSION_ACTIVE && session->condemned_for[0] == '\0';
}

void msh_exchange_start(MshSession *session)
{
    /* As if it had been idle for a second, so that its first pass starts at full speed. */
    msh_pace_init(&session->pace, QUOTA_PER_SECOND, QUOTA_BURST, msh_loop_now_ns() - 1000000000u);
}

void msh_exchange_doorbell(MshSource *source, uint32_t epoll_events)
{
    MshSession *session = MSH_CONTAINER(source, MshSession, doorbell);

    (void)epoll_events;
    msh_pace_spend(&session->pace, DOORBELL_COST, msh_loop_now_ns());
    msh_loop_defer(&session->service->broker->loop, &session->turn, 0);
}

/*
 * Replies
 */

static void will_ring(MshSession *session)
{
    if (session->is_ringing)
        return;
    session->is_ringing = true;
    TAILQ_INSERT_TAIL(&session->service->broker->ringing, session, ringing_link);
}

static void ring_bell(MshSession *session)
{
    const struct itimerval alarm = {.it_interval.tv_usec = BELL_ALARM_US,
                                    .it_value.tv_usec = BELL_ALARM_US};
    const struct itimerval no_alarm = {{0, 0}, {0, 0}};
    const uint64_t one = 1;
    ssize_t result;

    /* Repeating, in case the first goes off before the write has begun. */
    setitimer(ITIMER_REAL, &alarm, NULL);
    result = write(session->to_client_fd, &one, sizeof(one));
    if (result < 0)
        msh_session_condemn(session, "its eventfd cannot be written: %s", strerror(errno));
    setitimer(ITIMER_REAL, &no_alarm, NULL);
}

static void ring_bells(MshBroker *broker)
{
    MshSession *session;

    while ((session = TAILQ_FIRST(&broker->ringing)) != NULL) {
        TAILQ_REMOVE(&broker->ringing, session, ringing_link);
        session->is_ringing = false;
        ring_bell(session);
    }
}

static void reply(MshSession *session, const MshReply *message)
{
    int result = msh_ring_push_reply(&session->ring, message);

    if (result < 0) {
        msh_session_condemn(session,
                            result == -ENOBUFS ? "more than %u requests unanswered"
                                               : "its count of replies cannot be true (%u)",
                            MSH_RING_OUTSTANDING);
        return;
    }
    will_ring(session);
}

/* Whether the client has the segment's descriptor, or gets it before anything sent from now on. */
static bool show_segment(MshSession *session, uint32_t segment)
{
    int fd, result;

    if (msh_member_was_shown(session->member, segment))
        return !msh_outbox_keeps(&session->outbox, segment);
    if (msh_outbox_keeps_a_segment(&session->outbox))
        return false;
    fd = msh_member_show(session->member, segment);
    if (fd < 0) {
        msh_log_error("segment_not_shown segment=%u reason=\"%s\"", segment, strerror(-fd));
        return false;
    }
    result = msh_outbox_send_segment(&session->outbox, session->socket.fd, segment, fd);
    if (result == 0)
        return true;
    msh_session_sent(session, result);
    return false;
}

static void answer(MshSession *session, MshAnswer answer_given, uint32_t frame, MshSlot slot)
{
    MshReply message = {.frame = frame};

    switch (answer_given) {
    case MSH_ANSWER_PROVIDE:
        message.op = MSH_REPLY_PROVIDE;
        break;
    case MSH_ANSWER_MATCH:
        if (show_segment(session, msh_slot_segment(slot))) {
            message.op = MSH_REPLY_MATCH;
            message.slot = slot.number;
        } else {
            /* Never a grant that the client could not use. */
            msh_group_withdraw(session->member, slot);
            message.op = MSH_REPLY_NEW;
        }
        break;
    case MSH_ANSWER_NEW:
    default:
        message.op = MSH_REPLY_NEW;
        break;
    }
    reply(session, &message);
}

/*
 * Requests
 */

static void release(MshSession *session, uint32_t slot_number)
{
    if (msh_group_release(session->member, (MshSlot){slot_number}) == 0)
        return;
    if (++session->bad_releases > BAD_RELEASES_MAX)
        msh_session_condemn(session, "%u releases of slots it holds no grant on",
                            session->bad_releases);
}

/* Returns what it counts for. */
static uint32_t serve_request(MshSession *session, const MshRequest *request)
{
    MshReply account = {.op = MSH_REPLY_ACCOUNT};
    MshSlot slot = {0};
    MshAnswer given;

    switch (request->op) {
    case MSH_REQUEST_SIGHT:
    case MSH_REQUEST_PROVIDE:
        if (request->hash == 0) {
            msh_session_condemn(session, "request with hash 0, which no page has");
            return 1;
        }
        if (request->op == MSH_REQUEST_SIGHT) {
            given =
                msh_group_sight(session->member, request->hash, msh_frame(request->frame), &slot);
            answer(session, given, request->frame, slot);
            return 1;
        }
        if (request->page >= MSH_RING_PAGES) {
            msh_session_condemn(session, "PROVIDE with page %u of %u", request->page,
                                MSH_RING_PAGES);
            return 1;
        }
        given = msh_group_provide(session->member, request->hash, msh_frame(request->frame),
                                  session->ring.memory->pages[request->page], &slot);
        answer(session, given, request->frame, slot);
        return PROVIDE_COST;
    case MSH_REQUEST_RELEASE:
        release(session, request->slot);
        return 1;
    case MSH_REQUEST_ACCOUNT:
        account.value = msh_member_cost_bytes(session->member);
        account.missed = msh_member_missed(session->member);
        reply(session, &account);
        return ACCOUNT_COST;
    default:
        msh_session_condemn(session, "unknown request %u", request->op);
        return 1;
    }
}

/* Returns what they count for; *ret_result is the ring's word on the last one. What is left of them when the
 * session is condemned goes with it. What walks the store comes last in its turn. */
static uint64_t serve_some(MshSession *session, int *ret_result)
{
    MshRequest requests[REQUESTS_AT_ONCE];
    unsigned count = 0;
    uint64_t cost = 0;

    *ret_result = 0;
    while (count < REQUESTS_AT_ONCE &&
           (*ret_result = msh_ring_pop_request(&session->ring, &requests[count])) == 0) {
        msh_group_expect(session->member, requests[count].hash);
        if (requests[count++].op == MSH_REQUEST_ACCOUNT)
            break;
    }
    for (unsigned i = 0; i < count && may_be_served(session); i++)
        cost += serve_request(session, &requests[i]);
    return cost;
}

static void stall(MshSession *session, uint64_t now_ns)
{
    MshLoop *loop = &session->service->broker->loop;
    uint64_t rest_ns = msh_pace_wait_ns(&session->pace, REQUESTS_A_TURN, now_ns);

    if (!session->is_stalled)
        msh_loop_change(loop, &session->doorbell, 0);
    session->is_stalled = true;
    msh_loop_defer(loop, &session->turn, now_ns + rest_ns);
}

void msh_exchange_serve(MshSession *session)
{
    MshLoop *loop = &session->service->broker->loop;
    uint64_t now_ns = msh_loop_now_ns(), cost = 0;
    int result = 0;

    if (msh_pace_available(&session->pace, now_ns) < REQUESTS_A_TURN) {
        stall(session, now_ns);
        return;
    }
    if (session->is_stalled) {
        session->is_stalled = false;
        msh_loop_change(loop, &session->doorbell, EPOLLIN | EPOLLET);
    }
    for (unsigned i = 0; i < REQUESTS_A_TURN / REQUESTS_AT_ONCE && result == 0 && cost < COST_A_TURN; i++)
        cost += serve_some(session, &result);
    msh_pace_spend(&session->pace, cost, now_ns);
    if (result < 0)
        msh_session_condemn(session, "its count of requests cannot be true");
    else if (result == 0)
        msh_loop_defer(loop, &session->turn, 0);
    ring_bells(session->service->broker);
}

void msh_exchange_finish(MshSession *session)
{
    MshRequest request;

    for (unsigned i = 0; i < MSH_RING_ENTRIES && may_be_served(session); i++) {
        if (msh_ring_pop_request(&session->ring, &request) != 0)
            return;
        if (request.op == MSH_REQUEST_RELEASE)
            release(session, request.slot);
    }
}

/*
 * What the group tells. These may run in the middle of another session's request: they condemn, and
 * never end, a session.
 */

bool msh_exchange_hint(void *opaque, MshMember *member, MshFrame frame, MshSlot slot)
{
    MshSession *session = msh_member_opaque(member);
    MshReply message = {.op = MSH_REPLY_HINT, .frame = frame.number, .slot = slot.number};
    int room;

    (void)opaque;
    if (!may_be_served(session))
        return false;
    room = msh_ring_reply_room(&session->ring);
    if (room < 0) {
        msh_session_condemn(session, "its count of replies cannot be true");
        return false;
    }
    /* The answers to all it may have outstanding must still fit. */
    if (room <= (int)MSH_RING_OUTSTANDING || !show_segment(session, msh_slot_segment(slot)))
        return false;
    reply(session, &message);
    return may_be_served(session);
}

static void notify(MshMember *member, MshMessageType type, uint32_t segment)
{
    MshSession *session = msh_member_opaque(member);

    if (may_be_served(session))
        msh_session_sent(
            session, msh_outbox_send_notice(&session->outbox, session->socket.fd, type, segment));
}

void msh_exchange_retired(void *opaque, MshMember *member, uint32_t segment)
{
    (void)opaque;
    notify(member, MSH_MESSAGE_RETIRED, segment);
}

/* A client that does not know the message keeps its grants there until it has no use for them. */
void msh_exchange_emptying(void *opaque, MshMember *member, uint32_t segment)
{
    const MshSession *session = msh_member_opaque(member);

    (void)opaque;
    if (session->features & MSH_FEATURE_EMPTYING)
        notify(member, MSH_MESSAGE_EMPTYING, segment);
}
