/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include <pthread.h>

#include "ring.h"

static _Alignas(4096) MshRingMemory memory;
static MshRingEnd client, broker;

static int fresh_ends(void **state)
{
    (void)state;
    memset(&memory, 0, sizeof(memory));
    msh_ring_init(&client, &memory);
    msh_ring_init(&broker, &memory);
    return 0;
}

static void test_requests_arrive_in_order_until_full(void **state)
{
    (void)state;
    MshRequest request = {.op = MSH_REQUEST_SIGHT};
    for (uint32_t i = 0; i < MSH_RING_ENTRIES; i++) {
        request.frame = i;
        request.hash = i * 3ull;
        assert_int_equal(msh_ring_request_room(&client), MSH_RING_ENTRIES - i);
        assert_int_equal(msh_ring_push_request(&client, &request), 0);
    }
    assert_int_equal(msh_ring_push_request(&client, &request), -ENOBUFS);
    for (uint32_t i = 0; i < MSH_RING_ENTRIES; i++) {
        assert_int_equal(msh_ring_pop_request(&broker, &request), 0);
        assert_int_equal(request.frame, i);
        assert_int_equal(request.hash, i * 3ull);
    }
    assert_int_equal(msh_ring_pop_request(&broker, &request), MSH_E_RING_EMPTY);
    assert_int_equal(msh_ring_request_room(&client), MSH_RING_ENTRIES);
}

static void test_replies_cross_the_wrap_of_the_counts(void **state)
{
    (void)state;
    broker.pushed = client.popped = UINT32_MAX - 2;
    memory.reply_index.pushed = memory.reply_index.popped = UINT32_MAX - 2;
    for (uint32_t i = 0; i < 10; i++) {
        MshReply reply = {.op = MSH_REPLY_MATCH, .frame = i, .slot = i + 100, .value = ~0ull - i};
        MshReply got;
        assert_int_equal(msh_ring_reply_room(&broker), MSH_RING_ENTRIES);
        assert_int_equal(msh_ring_push_reply(&broker, &reply), 0);
        assert_int_equal(msh_ring_pop_reply(&client, &got), 0);
        assert_memory_equal(&got, &reply, sizeof(got));
    }
}

static void test_lying_counts_are_told(void **state)
{
    (void)state;
    MshRequest request = {0};
    MshReply reply = {0};
    memory.request_index.pushed = MSH_RING_ENTRIES + 1;
    assert_int_equal(msh_ring_pop_request(&broker, &request), -EPROTO);
    memory.request_index.popped = 1; /* more than were pushed */
    assert_int_equal(msh_ring_push_request(&client, &request), -EPROTO);
    assert_int_equal(msh_ring_request_room(&client), -EPROTO);
    memory.reply_index.pushed = UINT32_MAX; /* going back */
    assert_int_equal(msh_ring_pop_reply(&client, &reply), -EPROTO);
    memory.reply_index.popped = 1;
    assert_int_equal(msh_ring_push_reply(&broker, &reply), -EPROTO);
    assert_int_equal(msh_ring_reply_room(&broker), -EPROTO);
}

static void test_own_counts_are_not_read_back_from_shared_memory(void **state)
{
    (void)state;
    MshRequest request = {.frame = 1};
    assert_int_equal(msh_ring_push_request(&client, &request), 0);
    memory.request_index.popped = 0;
    memory.request_index.pushed = 900; /* the peer scribbles on ours */
    request.frame = 2;
    assert_int_equal(msh_ring_push_request(&client, &request), 0);
    assert_int_equal(memory.request_index.pushed, 2);
    assert_int_equal(memory.requests[1].frame, 2);
}

enum { RACED_ENTRIES = 200000 };

static void *echo(void *unused)
{
    (void)unused;
    for (uint32_t done = 0; done < RACED_ENTRIES;) {
        MshRequest request;
        if (msh_ring_reply_room(&broker) == 0 || msh_ring_pop_request(&broker, &request) != 0)
            continue;
        MshReply reply = {.frame = request.frame, .value = request.hash};
        msh_ring_push_reply(&broker, &reply);
        done++;
    }
    return NULL;
}

static void test_two_threads_lose_and_tear_nothing(void **state)
{
    (void)state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo, NULL), 0);
    uint32_t sent = 0, received = 0, wrong = 0;
    while (received < RACED_ENTRIES) {
        MshRequest request = {.frame = sent, .hash = sent * 0x9e3779b97f4a7c15ull};
        if (sent < RACED_ENTRIES && msh_ring_push_request(&client, &request) == 0)
            sent++;
        MshReply reply;
        while (msh_ring_pop_reply(&client, &reply) == 0) {
            wrong += reply.frame != received || reply.value != received * 0x9e3779b97f4a7c15ull;
            received++;
        }
    }
    pthread_join(thread, NULL);
    assert_int_equal(wrong, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_requests_arrive_in_order_until_full, fresh_ends),
        cmocka_unit_test_setup(test_replies_cross_the_wrap_of_the_counts, fresh_ends),
        cmocka_unit_test_setup(test_lying_counts_are_told, fresh_ends),
        cmocka_unit_test_setup(test_own_counts_are_not_read_back_from_shared_memory, fresh_ends),
        cmocka_unit_test_setup(test_two_threads_lose_and_tear_nothing, fresh_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
