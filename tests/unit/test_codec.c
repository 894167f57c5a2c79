/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "codec.h"
#include "memshare/units.h"

static MshMessage message, got;
static MshError error;

static int blank(void **state)
{
    (void)state;
    memset(&message, 0, sizeof(message));
    memset(&got, 0x77, sizeof(got));
    memset(&error, 0, sizeof(error));
    return 0;
}

/* Decoding fails, says so, and leaves the output. */
static void assert_bad(const void *bytes, size_t length_bytes, const char *what)
{
    MshMessage before = got;
    error.text[0] = '\0';
    assert_int_equal(msh_message_decode(bytes, length_bytes, &got, &error), -EBADMSG);
    assert_non_null(strstr(error.text, what));
    assert_memory_equal(&before, &got, sizeof(got));
}

static void test_every_type_goes_there_and_back(void **state)
{
    (void)state;
    static const struct {
        MshMessageType type;
        size_t length_bytes;
    } types[] = {
        {MSH_MESSAGE_HELLO, sizeof(MshHello)},
        {MSH_MESSAGE_WELCOME, sizeof(MshWelcome)},
        {MSH_MESSAGE_REFUSED, sizeof(MshRefused)},
        {MSH_MESSAGE_SEGMENT, sizeof(MshSegmentNotice)},
        {MSH_MESSAGE_RETIRED, sizeof(MshSegmentNotice)},
        {MSH_MESSAGE_FORGOTTEN, sizeof(MshSegmentNotice)},
        {MSH_MESSAGE_EMPTYING, sizeof(MshSegmentNotice)},
    };
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        memset(&message, 0, sizeof(message));
        size_t length_bytes = msh_message_seal(&message, types[i].type);
        assert_int_equal(length_bytes, types[i].length_bytes);
        assert_int_equal(msh_message_decode(&message, length_bytes, &got, &error), 0);
        assert_memory_equal(&got, &message, length_bytes);
    }
}

static void test_every_wrong_length_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[MSH_MESSAGE_BYTES_MAX] = {0};
    size_t right_bytes = msh_message_seal(&message, MSH_MESSAGE_HELLO);
    memcpy(bytes, &message, right_bytes);
    for (size_t length_bytes = 0; length_bytes <= sizeof(bytes); length_bytes++) {
        if (length_bytes != right_bytes)
            assert_bad(bytes, length_bytes, length_bytes < 8 ? "too short" : "bytes long");
    }
    message.header.length_bytes++;
    assert_bad(&message, right_bytes, "bytes long");
}

static void test_bad_magic_and_types_are_refused(void **state)
{
    (void)state;
    size_t length_bytes = msh_message_seal(&message, MSH_MESSAGE_SEGMENT);
    message.header.magic ^= 1;
    assert_bad(&message, length_bytes, "magic");
    message.header.magic ^= 1;
    message.header.type = 0;
    assert_bad(&message, length_bytes, "unknown type 0");
    message.header.type = UINT16_MAX;
    assert_bad(&message, length_bytes, "unknown type 65535");
}

static void test_texts_without_end_are_refused(void **state)
{
    (void)state;
    memset(message.hello.guest_name, 'a', sizeof(message.hello.guest_name));
    assert_bad(&message, msh_message_seal(&message, MSH_MESSAGE_HELLO), "guest name");
    memset(message.welcome.group, 'a', sizeof(message.welcome.group));
    assert_bad(&message, msh_message_seal(&message, MSH_MESSAGE_WELCOME), "group");
    memset(message.refused.reason, 'a', sizeof(message.refused.reason));
    assert_bad(&message, msh_message_seal(&message, MSH_MESSAGE_REFUSED), "reason");
}

static void test_texts_become_printable(void **state)
{
    (void)state;
    strcpy(message.hello.guest_name, "a\x1b[2J\nb\x7f\xc3\xa4~ ");
    size_t length_bytes = msh_message_seal(&message, MSH_MESSAGE_HELLO);
    assert_int_equal(msh_message_decode(&message, length_bytes, &got, NULL), 0);
    assert_string_equal(got.hello.guest_name, "a?[2J?b???~ ");
}

static void test_segments_out_of_range_are_refused(void **state)
{
    (void)state;
    message.segment.segment = MSH_SEGMENTS_MAX - 1;
    size_t length_bytes = msh_message_seal(&message, MSH_MESSAGE_FORGOTTEN);
    assert_int_equal(msh_message_decode(&message, length_bytes, &got, NULL), 0);
    message.segment.segment = MSH_SEGMENTS_MAX;
    assert_bad(&message, length_bytes, "segment");
}

static void test_random_bytes_never_get_through_unchecked(void **state)
{
    (void)state;
    uint8_t bytes[MSH_MESSAGE_BYTES_MAX];
    uint32_t random = 12345;
    for (uint32_t round = 0; round < 20000; round++) {
        for (size_t i = 0; i < sizeof(bytes); i++) {
            random = random * 1664525 + 1013904223;
            bytes[i] = (uint8_t)(random >> 24);
        }
        msh_message_seal(&message, (MshMessageType)(round % 8));
        memcpy(bytes, &message.header, sizeof(message.header));
        int r = msh_message_decode(bytes, message.header.length_bytes, &got, &error);
        if (r == 0 && got.header.type >= MSH_MESSAGE_SEGMENT)
            assert_true(got.segment.segment < MSH_SEGMENTS_MAX);
        else if (r == 0 && got.header.type == MSH_MESSAGE_HELLO)
            assert_non_null(memchr(got.hello.guest_name, 0, MSH_NAME_BYTES));
        else if (r != 0)
            assert_int_equal(r, -EBADMSG);
    }
}

static void test_the_newest_common_version_is_chosen(void **state)
{
    (void)state;
    assert_int_equal(msh_protocol_choose(MSH_PROTOCOL_OLDEST, MSH_PROTOCOL_NEWEST),
                     MSH_PROTOCOL_NEWEST);
    assert_int_equal(msh_protocol_choose(0, UINT32_MAX), MSH_PROTOCOL_NEWEST);
    assert_int_equal(msh_protocol_choose(MSH_PROTOCOL_NEWEST + 1, UINT32_MAX), -EPROTONOSUPPORT);
    assert_int_equal(msh_protocol_choose(0, MSH_PROTOCOL_OLDEST - 1), -EPROTONOSUPPORT);
    assert_int_equal(msh_protocol_choose(UINT32_MAX, 0), -EPROTONOSUPPORT);
}

static void test_group_names(void **state)
{
    (void)state;
    char longest[MSH_NAME_BYTES + 1] = {0};
    memset(longest, 'x', MSH_NAME_BYTES - 1);
    assert_int_equal(msh_group_name_check(longest, &error), 0);
    assert_int_equal(msh_group_name_check("tenant-a_1.x", &error), 0);
    longest[MSH_NAME_BYTES - 1] = 'x';
    assert_int_equal(msh_group_name_check(longest, &error), -EINVAL);
    static const char *const wrong[] = {"", ".", "..", ".a", "A", "a/b", "a b", "a\n", "\xc3\xa4"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        error.text[0] = '\0';
        assert_int_equal(msh_group_name_check(wrong[i], &error), -EINVAL);
        assert_non_null(strstr(error.text, "group name"));
        assert_null(strpbrk(error.text, "\n\xc3"));
    }
    assert_int_equal(msh_group_name_check("Bad", &error), -EINVAL);
    assert_non_null(strstr(error.text, "'Bad'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_type_goes_there_and_back, blank),
        cmocka_unit_test_setup(test_every_wrong_length_is_refused, blank),
        cmocka_unit_test_setup(test_bad_magic_and_types_are_refused, blank),
        cmocka_unit_test_setup(test_texts_without_end_are_refused, blank),
        cmocka_unit_test_setup(test_texts_become_printable, blank),
        cmocka_unit_test_setup(test_segments_out_of_range_are_refused, blank),
        cmocka_unit_test_setup(test_random_bytes_never_get_through_unchecked, blank),
        cmocka_unit_test_setup(test_the_newest_common_version_is_chosen, blank),
        cmocka_unit_test_setup(test_group_names, blank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
