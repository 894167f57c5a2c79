/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages that are moved: how many went, also where the kernel does not say. Nothing touches an absent page
 * here: it would sleep for ever.
 *
 * Linked with --wrap=ioctl.
 */
#include "unit.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include "kernel_abi.h"
#include "memshare/units.h"
#include "pagemap.h"
#include "uffd.h"

enum { PAGES = 4 };

typedef struct Site {
    MshUffd uffd;
    MshPagemap pagemap;
    uint8_t *from, *to;
} Site;

static unsigned unsaid_pages; /* the next move makes so many, and says EEXIST and nothing of them */

int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    if (request != MSH_UFFDIO_MOVE || unsaid_pages == 0)
        return __real_ioctl(fd, request, argument);
    struct msh_uffdio_move *move = argument;
    move->len = msh_pages_to_bytes(unsaid_pages);
    unsaid_pages = 0;
    assert_int_equal(__real_ioctl(fd, request, argument), 0);
    move->move = -EEXIST;
    errno = EEXIST;
    return -1;
}

static uint8_t *map_pages(const MshUffd *uffd)
{
    size_t length_bytes = msh_pages_to_bytes(PAGES);
    void *pages = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    madvise(pages, length_bytes, MADV_NOHUGEPAGE);
    assert_int_equal(msh_uffd_register(uffd, pages, length_bytes, MSH_UFFD_MISSING_PAGES), 0);
    return pages;
}

static void put(Site *site, uint8_t *pages, unsigned page, uint8_t value)
{
    static _Alignas(4096) uint8_t bytes[MSH_PAGE_BYTES];
    memset(bytes, value, sizeof bytes);
    assert_int_equal(
        msh_uffd_copy(&site->uffd, pages + msh_pages_to_bytes(page), bytes, sizeof bytes), 0);
}

static int make(void **state)
{
    static Site site;
    MshError error = {0};
    unsaid_pages = 0;
    if (msh_uffd_open(&site.uffd, -1, MSH_UFFD_FOR_WINDOWS, &error) < 0 ||
        msh_pagemap_open(&site.pagemap, &error) < 0)
        fail_msg("%s", error.text);
    site.from = map_pages(&site.uffd);
    site.to = map_pages(&site.uffd);
    *state = &site;
    return 0;
}

static int drop(void **state)
{
    Site *site = *state;
    munmap(site->from, msh_pages_to_bytes(PAGES));
    munmap(site->to, msh_pages_to_bytes(PAGES));
    msh_pagemap_close(&site->pagemap);
    msh_uffd_close(&site->uffd);
    return 0;
}

/* All of them, from the first on. Returns how many went. */
static unsigned move(Site *site, int expected)
{
    size_t moved_bytes = 77;
    assert_int_equal(msh_uffd_move(&site->uffd, &site->pagemap, site->to, site->from,
                                   msh_pages_to_bytes(PAGES), &moved_bytes),
                     expected);
    return (unsigned)msh_bytes_to_pages(moved_bytes);
}

static void assert_moved(const Site *site, unsigned pages)
{
    for (unsigned page = 0; page < pages; page++)
        assert_int_equal(site->to[msh_pages_to_bytes(page)], page + 1);
}

static void put_all(Site *site)
{
    for (unsigned page = 0; page < PAGES; page++)
        put(site, site->from, page, (uint8_t)(page + 1));
}

static void test_all_go(void **state)
{
    put_all(*state);
    assert_int_equal(move(*state, 0), PAGES);
    assert_moved(*state, PAGES);
}

static void test_I1_what_went_and_was_not_said_is_counted(void **state)
{
    put_all(*state);
    unsaid_pages = PAGES;
    assert_int_equal(move(*state, 0), PAGES);
    assert_moved(*state, PAGES);
}

static void test_I1_what_stayed_behind_it_is_not(void **state)
{
    Site *site = *state;
    put_all(site);
    unsaid_pages = 3;
    assert_int_equal(move(site, MSH_E_UFFD_AGAIN), 3);
    assert_moved(site, 3);
    assert_int_equal(site->from[msh_pages_to_bytes(3)], 4);
}

/* The kernel stops there, and says how many went before. */
static void test_I1_a_page_that_is_absent_has_not_gone(void **state)
{
    Site *site = *state;
    for (unsigned page = 0; page < PAGES; page++)
        if (page != 2)
            put(site, site->from, page, (uint8_t)(page + 1));
    assert_int_equal(move(site, MSH_E_UFFD_AGAIN), 2);
    assert_moved(site, 2);
    assert_int_equal(site->from[msh_pages_to_bytes(3)], 4);
}

static void test_I1_nor_has_one_whose_place_is_taken(void **state)
{
    Site *site = *state;
    put_all(site);
    put(site, site->to, 0, 9);
    assert_int_equal(move(site, MSH_E_UFFD_EXISTS), 0);
    assert_int_equal(site->to[0], 9);
    assert_int_equal(site->from[0], 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make, drop)
    const struct CMUnitTest tests[] = {
        TEST(test_all_go),
        TEST(test_I1_what_went_and_was_not_said_is_counted),
        TEST(test_I1_what_stayed_behind_it_is_not),
        TEST(test_I1_a_page_that_is_absent_has_not_gone),
        TEST(test_I1_nor_has_one_whose_place_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
