/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads that write to a region while an engine shares it, and notice when a write is lost.
 *
 * Each page belongs to one writer. A writer knows what each of its pages must hold (a shadow copy
 * in memory that no engine knows), looks before each write whether the last one is there still, and
 * at the end the whole region is compared. Runs of pages take turns at four kinds: three that
 * change between a dirty state and zeros or common contents, so that they are merged again and
 * again, and one that only ever changes. Every few writes go through the kernel, as a device's
 * would: with the page pinned, or as a read() does it.
 *
 * Also here: a thread that touches one page, whose sleep can be watched from outside.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "torture.h"

enum {
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    RUN_PAGES = 16,
    COMMON_CONTENTS = 64,
    KERNEL_WRITE_EVERY = 16,
};

typedef struct Writer {
    Torture *torture;
    pthread_t thread;
    unsigned number;
    uint64_t turns, sequence, writes;
    int pipe[2];
} Writer;

struct Torture {
    uint64_t *pages, *shadow;
    size_t page_count;
    unsigned writer_count, burst;
    bool pins;
    _Atomic bool stop;
    _Atomic uint64_t lost, writes;
    Writer writer[16];
};

/* What word 'word' of a page is when the page is in its common state. */
static uint64_t common_word(size_t page, size_t word)
{
    size_t kind = page / RUN_PAGES % 4;
    if (kind == 0)
        return 0;
    uint64_t contents = kind == 3 ? page + COMMON_CONTENTS : page % COMMON_CONTENTS;
    return (contents + 1) * 0x9e3779b97f4a7c15ull + word;
}

/* A write is gone, or something came that nobody wrote: where and what, for whoever looks for the
 * cause. */
static void note_lost(Torture *torture, const char *when, size_t page, uint64_t known,
                      uint64_t seen)
{
    torture->lost++;
    fprintf(stderr, "lost: written page %zu, %s a write: expected %#llx, seen %#llx\n", page, when,
            (unsigned long long)known, (unsigned long long)seen);
}

static void put(Writer *writer, uint64_t *at, uint64_t value)
{
    struct iovec from = {&value, sizeof value}, to = {at, sizeof value};
    if (writer->writes % KERNEL_WRITE_EVERY != 0) {
        *(volatile uint64_t *)at = value;
    } else if (writer->torture->pins) {
        if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != sizeof value)
            abort();
    } else if (write(writer->pipe[1], &value, sizeof value) != sizeof value ||
               read(writer->pipe[0], at, sizeof value) != sizeof value) {
        abort();
    }
}

static void write_once(Writer *writer)
{
    Torture *torture = writer->torture;
    /* Round and round over pages of its own that lie together: whole runs change their state. */
    size_t own = torture->page_count / torture->writer_count;
    size_t page = writer->number * own + writer->turns++ % own;
    size_t kind = page / RUN_PAGES % 4;
    /* Always the same word of a page, or a page would not come back to its common state by one
     * write. Anywhere in the page, so that no part of it is never tested. */
    size_t word = page * 37 % PAGE_WORDS;
    uint64_t *at = torture->pages + page * PAGE_WORDS + word;
    uint64_t *known = torture->shadow + page * PAGE_WORDS + word;
    uint64_t seen = *(volatile uint64_t *)at;
    if (seen != *known) {
        note_lost(torture, "before", page, *known, seen);
        *known = seen;
    }
    /* And one that is not written to: what takes its place may be all wrong but for the write
     * itself. */
    size_t other = (word + 1 + writer->writes % (PAGE_WORDS - 1)) % PAGE_WORDS;
    seen = ((volatile uint64_t *)torture->pages)[page * PAGE_WORDS + other];
    uint64_t other_known = torture->shadow[page * PAGE_WORDS + other];
    if (seen != other_known) {
        note_lost(torture, "besides", page, other_known, seen);
        torture->shadow[page * PAGE_WORDS + other] = seen;
    }
    uint64_t common = common_word(page, word);
    bool goes_back = kind < 3 && *known != common;
    uint64_t value = goes_back ? common : (++writer->sequence << 8) + writer->number + 1;
    put(writer, at, value);
    *known = value;
    writer->writes++;
    seen = *(volatile uint64_t *)at;
    if (seen != value)
        note_lost(torture, "after", page, value, seen);
}

static void *writer_main(void *opaque)
{
    Writer *writer = opaque;
    while (!atomic_load_explicit(&writer->torture->stop, memory_order_relaxed)) {
        write_once(writer);
        if (writer->writes % writer->torture->burst == 0)
            nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
        atomic_fetch_add_explicit(&writer->torture->writes, 1, memory_order_relaxed);
    }
    return NULL;
}

Torture *torture_start(void *base, size_t page_count, unsigned writer_count, unsigned burst,
                       int pins)
{
    Torture *torture = calloc(1, sizeof *torture);
    torture->pages = base;
    torture->page_count = page_count;
    torture->writer_count = writer_count;
    torture->burst = burst;
    torture->pins = pins;
    torture->shadow = malloc(page_count * PAGE_BYTES);
    for (size_t page = 0; page < page_count; page++)
        for (size_t word = 0; word < PAGE_WORDS; word++)
            torture->shadow[page * PAGE_WORDS + word] = torture->pages[page * PAGE_WORDS + word] =
                common_word(page, word);
    for (unsigned i = 0; i < writer_count; i++) {
        Writer *writer = &torture->writer[i];
        *writer = (Writer){.torture = torture, .number = i};
        if (pipe(writer->pipe) || pthread_create(&writer->thread, NULL, writer_main, writer))
            abort();
    }
    return torture;
}

uint64_t torture_lost(const Torture *torture)
{
    return torture->lost;
}

uint64_t torture_writes(const Torture *torture)
{
    return torture->writes;
}

void torture_stop(Torture *torture)
{
    torture->stop = true;
    for (unsigned i = 0; i < torture->writer_count; i++)
        pthread_join(torture->writer[i].thread, NULL);
}

uint64_t torture_wrong_bytes(const Torture *torture)
{
    const uint8_t *is = (const uint8_t *)torture->pages, *known = (const uint8_t *)torture->shadow;
    uint64_t wrong = 0;
    for (size_t page = 0; page < torture->page_count; page++) {
        uint64_t wrong_before = wrong;
        for (size_t i = page * PAGE_BYTES; i < (page + 1) * PAGE_BYTES; i++)
            wrong += is[i] != known[i];
        if (wrong > wrong_before)
            fprintf(stderr,
                    "lost: written page %zu, at the end: %llu bytes; its word 0: expected %#llx, "
                    "seen %#llx\n",
                    page, (unsigned long long)(wrong - wrong_before),
                    (unsigned long long)torture->shadow[page * PAGE_WORDS],
                    (unsigned long long)torture->pages[page * PAGE_WORDS]);
    }
    return wrong;
}

void torture_free(Torture *torture)
{
    for (unsigned i = 0; i < torture->writer_count; i++) {
        close(torture->writer[i].pipe[0]);
        close(torture->writer[i].pipe[1]);
    }
    free(torture->shadow);
    free(torture);
}

/*
 * Section: one touch, in a thread of its own
 */

struct Touch {
    pthread_t thread;
    volatile uint8_t *address;
    int value; /* to write; -1 reads */
    uint8_t seen;
    _Atomic int tid;
};

static void *touch_main(void *opaque)
{
    Touch *touch = opaque;
    touch->tid = (int)syscall(SYS_gettid);
    if (touch->value >= 0)
        *touch->address = (uint8_t)touch->value;
    touch->seen = *touch->address;
    return NULL;
}

Touch *touch_start(void *address, int value)
{
    Touch *touch = calloc(1, sizeof *touch);
    touch->address = address;
    touch->value = value;
    if (pthread_create(&touch->thread, NULL, touch_main, touch))
        abort();
    return touch;
}

int touch_tid(const Touch *touch)
{
    return touch->tid;
}

int touch_join(Touch *touch, unsigned timeout_seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_seconds;
    if (pthread_timedjoin_np(touch->thread, NULL, &until))
        return -1;
    int seen = touch->seen;
    free(touch);
    return seen;
}
