/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads take blocks of pages in turn, read the chosen pages of each, hash them and put the digests into
 * one array, in whatever order; sorted, equal digests lie side by side.
 */
#include "contents.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h>
#endif

#include "memshare/units.h"

enum {
    BLOCK_PAGES = 128, /* what is read lies in the cache when it is hashed */
    THREADS_MAX = 64,
};

typedef struct Job {
    const MshContentsRam *rams;
    const int *files; /* /proc/PID/mem of each */
    uint32_t count;
    uint64_t blocks;               /* of the largest ram */
    XXH128_hash_t zero;
    XXH128_hash_t *digests;        /* room for every chosen page */
    _Atomic(uint64_t) next_block;  /* counted through all rams, a block of each in turn */
    _Atomic(uint64_t) next_digest;
    _Atomic(uint64_t) zero_pages;
    _Atomic(int) result; /* of the thread that failed first; the others then stop */
    MshError *error;     /* written by that thread alone */
} Job;

typedef struct Block {
    uint32_t ram;
    uint64_t first, last;
} Block;

static void fail(Job *job, int code, int32_t pid)
{
    int none = 0;
    if (atomic_compare_exchange_strong(&job->result, &none, code))
        msh_error_set(job->error, code, "memory of process %d cannot be read: %s", pid,
                      strerror(-code));
}

/* Threads are seldom in one process at a time, where they would wait for its lock of mappings. */
static bool take_block(Job *job, Block *ret_block)
{
    for (;;) {
        uint64_t number = atomic_fetch_add(&job->next_block, 1);
        if (number >= job->blocks * job->count)
            return false;
        uint32_t ram = (uint32_t)(number % job->count);
        uint64_t first = number / job->count * BLOCK_PAGES, last = first + BLOCK_PAGES;
        uint64_t pages = job->rams[ram].pages;
        if (first < pages) {
            *ret_block = (Block){.ram = ram, .first = first, .last = last < pages ? last : pages};
            return true;
        }
    }
}

/* A read that ends early has come to a page that cannot be read. */
static int read_pages(int file, uint64_t address, void *buffer, size_t length_bytes)
{
    size_t done = 0;
    while (done < length_bytes) {
        ssize_t got = pread(file, (char *)buffer + done, length_bytes - done, (off_t)(address + done));
        if (got <= 0)
            return got < 0 ? -errno : -EIO;
        done += (size_t)got;
    }
    return 0;
}

static int count_block(Job *job, Block block, char *buffer)
{
    const MshContentsRam *ram = &job->rams[block.ram];
    XXH128_hash_t digests[BLOCK_PAGES];
    uint32_t found = 0, zeros = 0;
    for (uint64_t page = block.first, end; page < block.last; page = end) {
        end = page + 1;
        if (!ram->chosen[page])
            continue;
        while (end < block.last && ram->chosen[end])
            end++;
        int result = read_pages(job->files[block.ram], ram->start + page * MSH_PAGE_BYTES, buffer,
                                (end - page) * MSH_PAGE_BYTES);
        if (result < 0)
            return result;
        for (uint64_t i = 0; i < end - page; i++) {
            XXH128_hash_t digest = XXH3_128bits(buffer + i * MSH_PAGE_BYTES, MSH_PAGE_BYTES);
            if (XXH128_isEqual(digest, job->zero))
                zeros++;
            else
                digests[found++] = digest;
        }
    }
    atomic_fetch_add(&job->zero_pages, zeros);
    memcpy(job->digests + atomic_fetch_add(&job->next_digest, found), digests, found * sizeof *digests);
    return 0;
}

static void *work(void *opaque)
{
    Job *job = opaque;
    char *buffer = malloc(BLOCK_PAGES * MSH_PAGE_BYTES);
    Block block;
    if (!buffer)
        fail(job, -ENOMEM, job->rams[0].pid);
    while (atomic_load(&job->result) == 0 && take_block(job, &block)) {
        int result = count_block(job, block, buffer);
        if (result < 0)
            fail(job, result, job->rams[block.ram].pid);
    }
    free(buffer);
    return NULL;
}

/* A thread that cannot be made is done without. */
static void work_in_threads(Job *job, uint32_t threads)
{
    pthread_t others[THREADS_MAX];
    uint32_t made = 0;
    while (made + 1 < threads && made < THREADS_MAX && pthread_create(&others[made], NULL, work, job) == 0)
        made++;
    work(job);
    for (uint32_t i = 0; i < made; i++)
        pthread_join(others[i], NULL);
}

static uint64_t count_distinct(XXH128_hash_t *digests, uint64_t count)
{
    qsort(digests, count, sizeof *digests, XXH128_cmp);
    uint64_t distinct = count > 0;
    for (uint64_t i = 1; i < count; i++)
        distinct += !XXH128_isEqual(digests[i - 1], digests[i]);
    return distinct;
}

static int open_files(const MshContentsRam *rams, uint32_t count, int *files, MshError *error)
{
    for (uint32_t i = 0; i < count; i++) {
        char path[32];
        snprintf(path, sizeof path, "/proc/%d/mem", rams[i].pid);
        files[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (files[i] < 0)
            return msh_error_set(error, -errno, "%s cannot be opened: %s", path, strerror(errno));
    }
    return 0;
}

int msh_contents_count(const MshContentsRam *rams, uint32_t count, uint32_t threads,
                       MshContentsCount *ret_count, MshError *error)
{
    static const char zeros[MSH_PAGE_BYTES];
    Job job = {.rams = rams, .count = count, .error = error};
    job.zero = XXH3_128bits(zeros, sizeof zeros);

    uint64_t chosen = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t blocks = (rams[i].pages + BLOCK_PAGES - 1) / BLOCK_PAGES;
        job.blocks = blocks > job.blocks ? blocks : job.blocks;
        for (uint64_t page = 0; page < rams[i].pages; page++)
            chosen += rams[i].chosen[page] != 0;
    }
    job.digests = malloc((chosen + 1) * sizeof *job.digests);
    int *files = malloc((count + 1) * sizeof *files);
    int result = -ENOMEM;
    if (!job.digests || !files) {
        msh_error_set(error, result, "no memory for the digests of %lu pages", (unsigned long)chosen);
        goto out;
    }
    for (uint32_t i = 0; i < count; i++)
        files[i] = -1;
    job.files = files;
    result = open_files(rams, count, files, error);
    if (result == 0) {
        work_in_threads(&job, threads);
        result = job.result;
    }
    if (result == 0)
        *ret_count = (MshContentsCount){
            .zero_pages = job.zero_pages,
            .distinct_pages = count_distinct(job.digests, job.next_digest),
        };
    for (uint32_t i = 0; i < count; i++)
        if (files[i] >= 0)
            close(files[i]);
out:
    free(files);
    free(job.digests);
    return result;
}
