/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Views of segments that grow, and of those that do not any more. */
#include "unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "views.h"

enum { POSITION = 7 }; /* in its segment */

/* A segment as a store makes it, opened as view *ret_local; its descriptor, to write by. */
static int make(MshViews *views, size_t length_bytes, uint32_t *ret_local)
{
    char path[64];
    int fd = memfd_create("segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(fd, (off_t)length_bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE), 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    assert_int_equal(msh_views_open(views, 3, open(path, O_RDONLY | O_CLOEXEC), ret_local), 0);
    return fd;
}

static void test_a_segment_that_grows_is_looked_at_again(void **state)
{
    (void)state;
    static MshViews views;
    uint32_t local;
    int fd = make(&views, msh_pages_to_bytes(POSITION), &local);
    MshSlot slot = msh_slot(local, POSITION);
    assert_false(msh_view_holds(views.view[local], slot));
    assert_int_equal(ftruncate(fd, (off_t)msh_pages_to_bytes(POSITION + 1)), 0);
    assert_true(msh_view_holds(views.view[local], slot));
    assert_true(fcntl(views.view[local]->fd, F_GETFD) >= 0);
    msh_views_close_all(&views);
    close(fd);
}

static void test_one_of_full_size_keeps_no_descriptor(void **state)
{
    (void)state;
    static MshViews views;
    uint32_t local;
    int fd = make(&views, MSH_SEGMENT_BYTES, &local);
    int ours = views.view[local]->fd;
    assert_true(fcntl(ours, F_GETFD) >= 0);
    assert_true(msh_view_holds(views.view[local], msh_slot(local, POSITION)));
    assert_int_equal(fcntl(ours, F_GETFD), -1);
    assert_true(msh_view_holds(views.view[local], msh_slot(local, POSITION + 1)));
    assert_int_equal(msh_view_page(views.view[local], msh_slot(local, POSITION))[0], 0);
    msh_views_close_all(&views);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_segment_that_grows_is_looked_at_again),
        cmocka_unit_test(test_one_of_full_size_keeps_no_descriptor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
