/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A fake broker against the client's end of the connection: what it says, and what it hands over, costs
 * sharing and nothing else. I7
 */
#include "unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "codec.h"
#include "exchange.h"

typedef struct FakeBroker {
    char folder[32], path[64];
    int listener;
    int ring_seals;
    bool refuses_first_question;
    pthread_t thread;
} FakeBroker;

static unsigned disconnections;

static void on_match(void *opaque, uint32_t frame, MshSlot slot)
{
    (void)opaque, (void)frame, (void)slot;
}

static bool copy_page(void *opaque, uint32_t frame, void *destination)
{
    (void)opaque, (void)frame, (void)destination;
    return false;
}

static int on_connected(void *opaque, const uint8_t *secret, int device_fd)
{
    (void)opaque, (void)secret, (void)device_fd;
    return 0;
}

static void on_disconnected(void *opaque)
{
    (void)opaque;
    disconnections++;
}

static void on_emptying(void *opaque)
{
    (void)opaque;
}

static void open_descriptors(int fds[MSH_WELCOME_DESCRIPTORS], int ring_seals)
{
    fds[MSH_WELCOME_UFFD_DEVICE] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    fds[MSH_WELCOME_RING] = memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fds[MSH_WELCOME_TO_BROKER] = eventfd(0, EFD_CLOEXEC);
    fds[MSH_WELCOME_TO_CLIENT] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(ftruncate(fds[MSH_WELCOME_RING], sizeof(MshRingMemory)), 0);
    assert_int_equal(fcntl(fds[MSH_WELCOME_RING], F_ADD_SEALS, ring_seals), 0);
}

static void close_descriptors(const int fds[MSH_WELCOME_DESCRIPTORS])
{
    for (size_t i = 0; i < MSH_WELCOME_DESCRIPTORS; i++)
        close(fds[i]);
}

static void send_welcome(int socket, uint32_t session, const int fds[MSH_WELCOME_DESCRIPTORS])
{
    MshMessage message = {.welcome = {.version = MSH_PROTOCOL_NEWEST,
                                      .session = session,
                                      .features = MSH_FEATURES,
                                      .group = "default"}};
    size_t length = msh_message_seal(&message, MSH_MESSAGE_WELCOME);
    size_t fds_bytes = sizeof(int) * MSH_WELCOME_DESCRIPTORS;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * MSH_WELCOME_DESCRIPTORS)];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(fds_bytes)}};
    memcpy(CMSG_DATA(&control.header), fds, fds_bytes);
    struct iovec part = {.iov_base = &message, .iov_len = length};
    struct msghdr envelope = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    assert_int_equal(sendmsg(socket, &envelope, MSG_NOSIGNAL), length);
}

/* Serves one connection until its client closes it. */
static void *broker_main(void *opaque)
{
    const FakeBroker *broker = opaque;
    char bytes[MSH_MESSAGE_BYTES_MAX];
    int socket = accept(broker->listener, NULL, NULL);
    assert_true(recv(socket, bytes, sizeof bytes, 0) > 0); /* HELLO */
    int fds[MSH_WELCOME_DESCRIPTORS];
    open_descriptors(fds, broker->ring_seals);
    send_welcome(socket, 1, fds);
    if (broker->refuses_first_question) {
        eventfd_t ignored;
        assert_int_equal(eventfd_read(fds[MSH_WELCOME_TO_BROKER], &ignored), 0);
        MshMessage message = {.refused = {.reason = "enough of you"}};
        size_t length = msh_message_seal(&message, MSH_MESSAGE_REFUSED);
        assert_int_equal(send(socket, &message, length, MSG_NOSIGNAL), length);
    }
    assert_int_equal(recv(socket, bytes, sizeof bytes, 0), 0);
    close_descriptors(fds);
    close(socket);
    return NULL;
}

static void listen_at(FakeBroker *broker)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(broker->folder, sizeof broker->folder, "/tmp/memshare-unit-XXXXXX");
    assert_non_null(mkdtemp(broker->folder));
    snprintf(broker->path, sizeof broker->path, "%s/default.sock", broker->folder);
    memcpy(address.sun_path, broker->path, sizeof broker->path);
    broker->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(broker->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(broker->listener, 1), 0);
}

static void stop_listening(FakeBroker *broker)
{
    close(broker->listener);
    unlink(broker->path);
    rmdir(broker->folder);
}

static void start(FakeBroker *broker)
{
    listen_at(broker);
    assert_int_equal(pthread_create(&broker->thread, NULL, broker_main, broker), 0);
}

static void stop(FakeBroker *broker)
{
    pthread_join(broker->thread, NULL);
    stop_listening(broker);
}

static MshExchange *connect_to(const FakeBroker *broker, MshViews *views)
{
    static const MshExchangeEvents events = {.match = on_match,
                                             .copy_page = copy_page,
                                             .connected = on_connected,
                                             .disconnected = on_disconnected,
                                             .emptying = on_emptying};
    MshExchange *exchange = NULL;
    MshError error = {0};
    if (msh_channel_new(broker->path, "default", "guest", views, &events, &exchange, &error) < 0)
        fail_msg("%s", error.text);
    return exchange;
}

static void test_I7_a_refusal_ends_a_question_that_waits(void **state)
{
    (void)state;
    static MshViews views;
    FakeBroker broker = {.ring_seals = F_SEAL_SHRINK | F_SEAL_GROW, .refuses_first_question = true};
    MshSighting sighting = {.hash = 1, .frame = 1};
    MshAccount account;
    start(&broker);
    MshExchange *exchange = connect_to(&broker, &views);
    while (!exchange->verbs->poll(exchange))
        sched_yield();
    disconnections = 0;

    exchange->verbs->sight(exchange, &sighting, 1);

    assert_int_equal(disconnections, 1);
    assert_false(exchange->verbs->poll(exchange));
    assert_string_equal(exchange->why, "the broker refused: enough of you");
    assert_false(exchange->verbs->account(exchange, &account));
    exchange->verbs->free(exchange);
    stop(&broker);
}

/* Accepts when the client, which waits longer each time, tries again. */
static int accept_from(MshExchange *exchange, int listener)
{
    int socket;
    while ((socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0) {
        assert_int_equal(errno, EAGAIN);
        assert_false(exchange->verbs->poll(exchange));
    }
    return socket;
}

/* What the client has said, 0: nothing. */
static MshMessageType take(int socket, MshMessage *ret_message)
{
    char bytes[MSH_MESSAGE_BYTES_MAX];
    ssize_t length = recv(socket, bytes, sizeof bytes, 0);
    if (length < 0)
        return 0;
    assert_int_equal(msh_message_decode(bytes, (size_t)length, ret_message, NULL), 0);
    return ret_message->header.type;
}

/* A connection that is greeted; the fake broker's end of it. */
static int greet(MshExchange *exchange, int listener, uint32_t session)
{
    MshMessage message;
    int socket = accept_from(exchange, listener), fds[MSH_WELCOME_DESCRIPTORS];
    assert_int_equal(take(socket, &message), MSH_MESSAGE_HELLO);
    open_descriptors(fds, F_SEAL_SHRINK);
    send_welcome(socket, session, fds);
    close_descriptors(fds);
    assert_true(exchange->verbs->poll(exchange));
    return socket;
}

static void test_I6_what_is_over_is_told(void **state)
{
    (void)state;
    static MshViews views;
    MshView kept = {.source = 0};
    FakeBroker broker = {0};
    MshMessage message;
    listen_at(&broker);
    fcntl(broker.listener, F_SETFL, O_NONBLOCK);
    MshExchange *exchange = connect_to(&broker, &views);
    int first = greet(exchange, broker.listener, 7);
    close(first);
    views.view[3] = &kept; /* is of the first connection */
    assert_false(exchange->verbs->poll(exchange));
    int second = greet(exchange, broker.listener, 8);

    assert_true(exchange->verbs->poll(exchange));
    assert_int_equal(take(second, &message), 0); /* something may still be mapped from there */
    views.view[3] = NULL;
    assert_true(exchange->verbs->poll(exchange));
    assert_int_equal(take(second, &message), MSH_MESSAGE_LEFT);
    assert_int_equal(message.left.session, 7);
    assert_int_equal(take(second, &message), 0);

    /* More than its socket holds. */
    enum { MANY = 2000 };
    for (uint32_t segment = 0; segment < MANY; segment++)
        exchange->verbs->forget(exchange, segment);
    bool was_told[MANY] = {false};
    for (unsigned told = 0; told < MANY;) {
        assert_true(exchange->verbs->poll(exchange));
        while (take(second, &message) == MSH_MESSAGE_FORGOTTEN) {
            assert_false(was_told[message.segment.segment]);
            was_told[message.segment.segment] = true;
            told++;
        }
    }
    close(second);
    exchange->verbs->free(exchange);
    stop_listening(&broker);
}

static void test_I7_a_ring_that_can_be_cut_short_is_turned_down(void **state)
{
    (void)state;
    static MshViews views;
    FakeBroker broker = {.ring_seals = F_SEAL_GROW};
    start(&broker);
    MshExchange *exchange = connect_to(&broker, &views);

    do
        assert_false(exchange->verbs->poll(exchange));
    while (exchange->why[0] == '\0');

    assert_string_equal(exchange->why, "the broker broke the protocol");
    exchange->verbs->free(exchange);
    stop(&broker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_I7_a_refusal_ends_a_question_that_waits),
        cmocka_unit_test(test_I6_what_is_over_is_told),
        cmocka_unit_test(test_I7_a_ring_that_can_be_cut_short_is_turned_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
