/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Can this host share? What is missing is named, not guessed at later.
 */
#ifndef MSH_PROBE_H
#define MSH_PROBE_H

#include <stdbool.h>

#include "memshare/error.h"

/* 0, or -ENOSYS: the kernel's UFFDIO_MOVE is too old or too racy, memory is accounted too strictly for
 * store mappings, or the process has an address space limit. Only what can be known without a
 * userfaultfd: msh_uffd_open knows the rest. */
int msh_probe_host(MshError *error);

/* Release "major.minor.patch..." of a kernel whose UFFDIO_MOVE and mremap are sound: 6.18 or later, or a 6.12
 * stable kernel from 6.12.37 on. Races of the first with the swap cache were fixed there and in 6.16; 6.15 to 6.17
 * lose what a mapping was charged when MREMAP_DONTUNMAP leaves it behind. */
bool msh_probe_release_is_sound(const char *release);

#endif
