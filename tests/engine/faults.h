/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How faults.c is steered; tests/lib/faults.py reads this very file. A point is a kind of call on
 * watched memory, or the same on the engine's own areas.
 */
#ifndef MSH_TEST_FAULTS_H
#define MSH_TEST_FAULTS_H

#include <stddef.h>
#include <stdint.h>

typedef enum Point {
    OPEN_WINDOW,    /* UFFDIO_REGISTER of watched memory */
    MOVE_OUT,       /* UFFDIO_MOVE from it */
    MOVE_IN,        /* UFFDIO_MOVE to it */
    COPY_IN,        /* UFFDIO_COPY to it */
    COPY_OUT,       /* UFFDIO_COPY from it */
    CLOSE_WINDOW,   /* UFFDIO_UNREGISTER of it */
    WAKE,           /* UFFDIO_WAKE of it */
    PROTECT,        /* UFFDIO_WRITEPROTECT of it */
    MAP_OVER,       /* mremap onto it */
    MAP_AWAY,       /* mremap from it */
    MAP_FIXED_OVER, /* mmap onto it */
    ADVISE,         /* madvise of it */
    REGISTER_OWN,   /* UFFDIO_REGISTER of an area of the engine's own */
    UNREGISTER_OWN, /* UFFDIO_UNREGISTER of one */
    GROW_OWN,       /* mremap of one, to be larger */
    MAP_OWN,        /* mmap of one */
    ADVISE_OWN,     /* madvise of one */
    POINTS,
} Point;

typedef enum Sabotage {
    COMPARE_THEN_MAP = 1, /* pages are copied out, and stay where they are */
    NO_WAKE = 2,
    TOUCH_FIXED = 4, /* memory mapped over watched memory is written to at once, as a guest might */
} Sabotage;

void faults_watch(void *start, size_t length_bytes);
/* Forgets plans, counts and gates, and lets all who wait pass. */
void faults_reset(void);
/* Of the calls from now on, after so many let times of them fail. half: they do part of their work
 * all the same, as the kernel's may: MAP_OVER unmaps its target, registrations are made, pages
 * move. */
void faults_fail(int point, uint64_t after, uint64_t times, int error, int half);
/* A byte is written just before the call after so many from now on, as if by a guest. */
void faults_poke(int point, uint64_t after, void *address, int value);
uint64_t faults_calls(int point);
/* The call after so many from now on waits until faults_open_gate(). */
void faults_gate(int point, uint64_t after);
int faults_wait_for_gate(unsigned timeout_seconds);
void faults_open_gate(void);
/* Each such call waits for so long before it is made: a race that an idle machine with many cores
 * would see now and then happens nearly every time. */
void faults_linger(int point, unsigned ns);
void faults_sabotage(unsigned what);
/* What /proc/sys/vm/max_map_count seems to say; 0: the truth. */
void faults_set_map_count_limit(unsigned limit);

#endif
