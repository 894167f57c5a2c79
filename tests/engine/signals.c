/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pass on a thread whose signal handler touches registered memory. Run inside a window it would
 * wait for a page that only its own thread can bring back: so a signal is raised just there,
 * whenever a page has been moved away.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel_abi.h"
#include "memshare/memshare.h"

enum { PAGES = 64, DEADLINE_SECONDS = 20 };

static uint8_t *memory;
static volatile unsigned raised, handled;

static void touch_first_page(int signal_number)
{
    (void)signal_number;
    *(volatile uint8_t *)memory = 0;
    handled++;
}

/* In place of the C library's: the engine is linked into this program. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    int result = (int)syscall(SYS_ioctl, fd, request, argument);
    if (request == MSH_UFFDIO_MOVE && result == 0 &&
        ((struct msh_uffdio_move *)argument)->src == (uintptr_t)memory) {
        raised++;
        raise(SIGUSR1);
    }
    return result;
}

int main(void)
{
    MshEngine *engine;
    MshError error = {0};
    memory = mmap(NULL, msh_pages_to_bytes(PAGES), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 0, msh_pages_to_bytes(PAGES));
    if (msh_engine_new(&(MshConfig){.mode = MSH_MODE_CONTENT}, &engine, &error) < 0 ||
        msh_engine_register(engine, memory, msh_pages_to_bytes(PAGES), &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        return EXIT_FAILURE;
    }
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = touch_first_page}, NULL);
    alarm(DEADLINE_SECONDS); /* ends a process that waits for itself */
    for (unsigned i = 0; i < 4; i++)
        msh_engine_scan_once(engine, &error);
    msh_engine_free(engine);
    return raised > 0 && handled > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
