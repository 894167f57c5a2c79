/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "fingerprint.h"

static uint8_t secret_a[MSH_SECRET_BYTES], secret_b[MSH_SECRET_BYTES];
static _Alignas(4096) uint8_t page[MSH_PAGE_BYTES];

static int fill_secrets(void **state)
{
    (void)state;
    uint32_t random = 1;
    for (size_t i = 0; i < MSH_SECRET_BYTES; i++) {
        random = random * 1664525 + 1013904223;
        secret_a[i] = (uint8_t)(random >> 24);
        secret_b[i] = (uint8_t)(random >> 16);
    }
    memset(page, 0, sizeof(page));
    return 0;
}

static void test_every_single_byte_makes_a_page_non_zero(void **state)
{
    (void)state;
    assert_true(msh_page_is_zero(page));
    for (size_t i = 0; i < MSH_PAGE_BYTES; i++) {
        page[i] = 1;
        assert_false(msh_page_is_zero(page));
        page[i] = 0;
    }
    assert_true(msh_page_is_zero(page));
}

static void test_the_hash_depends_on_the_contents_only(void **state)
{
    (void)state;
    static _Alignas(4096) uint8_t other[MSH_PAGE_BYTES];
    memset(page, 0x5a, sizeof(page));
    memcpy(other, page, sizeof(page));
    assert_int_equal(msh_fingerprint(secret_a, page), msh_fingerprint(secret_a, other));
    assert_int_not_equal(msh_fingerprint(secret_a, page), 0);
}

#ifdef MSH_WEAK_HASH
static void test_the_weak_hash_has_255_values(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 5000; i++) {
        memcpy(page, &i, sizeof(i));
        uint64_t hash = msh_fingerprint(secret_a, page);
        assert_in_range(hash, 1, 255);
    }
}
#else
static void test_every_byte_and_the_secret_count(void **state)
{
    (void)state;
    uint64_t zero = msh_fingerprint(secret_a, page);
    for (size_t i = 0; i < MSH_PAGE_BYTES; i++) {
        page[i] = 1;
        assert_true(msh_fingerprint(secret_a, page) != zero);
        page[i] = 0;
    }
    assert_true(msh_fingerprint(secret_b, page) != zero); /* I5 */
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_single_byte_makes_a_page_non_zero, fill_secrets),
        cmocka_unit_test_setup(test_the_hash_depends_on_the_contents_only, fill_secrets),
#ifdef MSH_WEAK_HASH
        cmocka_unit_test_setup(test_the_weak_hash_has_255_values, fill_secrets),
#else
        cmocka_unit_test_setup(test_every_byte_and_the_secret_count, fill_secrets),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
