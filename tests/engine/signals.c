/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Passes on a thread that is interrupted all the time by a handler which touches registered memory.
 * Run inside a window it would wait for a page that only its own thread can bring back.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "memshare/memshare.h"

enum { PAGES = 4096, PASSES = 30000, TOUCHES = 100, INTERVAL_US = 250 };

static volatile char *memory;

static void touch_pages(int signal_number)
{
    static unsigned at;
    (void)signal_number;
    for (unsigned i = 0; i < TOUCHES; i++)
        memory[msh_pages_to_bytes(at++ % PAGES)] = 0;
}

int main(void)
{
    MshEngine *engine;
    MshError error = {0};
    memory = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset((void *)memory, 0, msh_pages_to_bytes(PAGES));
    if (msh_engine_new(&(MshConfig){.mode = MSH_MODE_CONTENT}, &engine, &error) < 0 ||
        msh_engine_register(engine, (void *)memory, msh_pages_to_bytes(PAGES), &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        return EXIT_FAILURE;
    }
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = touch_pages}, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, INTERVAL_US}, {0, INTERVAL_US}}, NULL);
    for (unsigned i = 0; i < PASSES; i++)
        msh_engine_scan_once(engine, &error);
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    msh_engine_free(engine);
    return EXIT_SUCCESS;
}
