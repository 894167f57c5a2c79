/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Kernel interfaces newer than the Linux 6.1 headers of Debian 12, each with the release that brought
 * it. Nothing else in the tree declares kernel numbers.
 */
#ifndef MSH_KERNEL_ABI_H
#define MSH_KERNEL_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* userfaultfd: asynchronous write protection (6.7), moving pages (6.8) */
#define MSH_UFFD_FEATURE_WP_UNPOPULATED (1ull << 13)
#define MSH_UFFD_FEATURE_WP_ASYNC (1ull << 15)
#define MSH_UFFD_FEATURE_MOVE (1ull << 16)

struct msh_uffdio_move {
    __u64 dst, src, len, mode;
    __s64 move; /* out: bytes moved, or -errno when nothing was */
};
#define MSH_UFFDIO_MOVE_MODE_DONTWAKE (1ull << 0)
#define MSH_UFFDIO_MOVE _IOWR(0xAA, 0x05, struct msh_uffdio_move)

/* Scanning page tables (6.7) */
#define MSH_PAGE_IS_WRITTEN (1ull << 1)
#define MSH_PAGE_IS_FILE (1ull << 2)
#define MSH_PAGE_IS_PRESENT (1ull << 3)
#define MSH_PAGE_IS_SWAPPED (1ull << 4)
#define MSH_PAGE_IS_PFNZERO (1ull << 5)
#define MSH_PAGE_IS_HUGE (1ull << 6)

struct msh_page_region {
    __u64 start, end, categories;
};

struct msh_pm_scan_arg {
    __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
    __u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define MSH_PM_SCAN_WP_MATCHING (1ull << 0)
#define MSH_PAGEMAP_SCAN _IOWR('f', 16, struct msh_pm_scan_arg)

/* A descriptor of a Unix socket's peer process (6.5) */
#define MSH_SO_PEERPIDFD 77

#endif
