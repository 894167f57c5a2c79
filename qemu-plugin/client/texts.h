/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lines that one thread sets and any other may read without a lock: each text ever set is kept until the
 * end and published by pointer. There are few, for reasons repeat.
 */
#ifndef MSH_TEXTS_H
#define MSH_TEXTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "memshare/stats.h"

enum { MSH_TEXTS_MAX = 64 };

typedef struct MshTexts {
    pthread_mutex_t lock; /* of writers */
    char *kept[MSH_TEXTS_MAX];
    size_t count;
} MshTexts;

typedef _Atomic(const char *) MshText;

void msh_texts_init(MshTexts *texts);
void msh_texts_fini(MshTexts *texts);

/* NULL or "" clears it. */
void msh_text_set(MshTexts *texts, MshText *text, const char *value);

/* Never NULL. */
const char *msh_text_get(const MshText *text);

#endif
