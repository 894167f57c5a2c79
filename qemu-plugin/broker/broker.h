/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of memshared share. One thread; main.c owns it.
 *
 * The error rule of this process: assert hard, die fast. Running out of memory for bookkeeping, or
 * a state that cannot be, ends it; a dead broker costs no guest a byte (I7). What a client does
 * never ends it: that client is cut off, alone.
 */
#ifndef MSH_BROKER_H
#define MSH_BROKER_H

#include "admission.h"
#include "loop.h"
#include "options.h"

typedef struct MshService MshService;
typedef struct MshSession MshSession;

typedef struct MshBroker {
    MshLoop loop;
    MshOptions options;
    MshAdmission admission;
    TAILQ_HEAD(, MshService) services;
    TAILQ_HEAD(, MshSession) ringing; /* got replies in this turn, and no bell yet */
    int uffd_device_fd;               /* /dev/userfaultfd, opened once at start; or -errno */
} MshBroker;

#endif
