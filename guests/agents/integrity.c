/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * integrity start BYTES: keeps files in RAM and verifies them, for as long as the guest runs.
 *
 * Half of the files are the same in all guests, half are this guest's own. Each pass reads all of them, compares every
 * byte with what was written, and rewrites one file of each half with other contents that are known as well: by turns in
 * place, and in pages that were freed and taken anew. There are two contents for each file, so that guests part and meet.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "counters.h"
#include "pattern.h"
#include "run.h"

#define FILES 32u
#define FILE_PAUSE_MS 100u /* so that a pass takes some seconds, and most of that is rest */
#define COMMON 0x6d656d7368617265u

struct verifier {
    struct counters *counters;
    uint64_t file_pages;
    uint64_t seeds[2]; /* of the first half of the files, and of the second */
    unsigned contents[FILES];
};

static const char *file_path(unsigned file)
{
    char name[32];

    snprintf(name, sizeof name, "files/%02u", file);
    return run_path(name);
}

static uint64_t page_seed(const struct verifier *verifier, unsigned file, uint64_t page)
{
    return pattern_seed(verifier->seeds[file / (FILES / 2)], file * 2 + verifier->contents[file], page);
}

static void write_file(const struct verifier *verifier, unsigned file, int flags)
{
    uint64_t words[PAGE_WORDS];
    int fd = open(file_path(file), O_WRONLY | O_CREAT | flags, 0600);

    if (fd < 0)
        die("%s: %s", file_path(file), strerror(errno));
    for (uint64_t page = 0; page < verifier->file_pages; page++) {
        pattern_page(words, page_seed(verifier, file, page));
        if (write(fd, words, sizeof words) != (ssize_t)sizeof words)
            die("%s: %s", file_path(file), strerror(errno));
    }
    close(fd);
}

static void compare_page(const struct verifier *verifier, unsigned file, uint64_t page, const uint8_t *found)
{
    uint64_t words[PAGE_WORDS];
    const uint8_t *wanted = (const uint8_t *)words;
    unsigned i = 0;

    pattern_page(words, page_seed(verifier, file, page));
    if (!memcmp(found, wanted, PAGE_BYTES))
        return;
    while (found[i] == wanted[i])
        i++;
    counters_wrong(verifier->counters, "file %u, page %llu, byte %u is 0x%02x, not 0x%02x", file,
                   (unsigned long long)page, i, found[i], wanted[i]);
}

static void verify_file(const struct verifier *verifier, unsigned file)
{
    uint8_t found[PAGE_BYTES];
    int fd = open(file_path(file), O_RDONLY);

    if (fd < 0) {
        counters_wrong(verifier->counters, "file %u: %s", file, strerror(errno));
        return;
    }
    for (uint64_t page = 0; page < verifier->file_pages; page++) {
        if (read(fd, found, sizeof found) != (ssize_t)sizeof found) {
            counters_wrong(verifier->counters, "file %u ends before page %llu", file, (unsigned long long)page);
            break;
        }
        compare_page(verifier, file, page, found);
    }
    close(fd);
}

/* The kernel should end anything else before it ends what judges memory. */
static void stay(void)
{
    FILE *file = fopen("/proc/self/oom_score_adj", "w");

    if (file) {
        fputs("-1000", file);
        fclose(file);
    }
}

static void verify_for_good(void *argument)
{
    struct verifier *verifier = argument;

    stay();
    for (unsigned file = 0; file < FILES; file++)
        write_file(verifier, file, O_TRUNC);
    for (unsigned pass = 0;; pass++) {
        for (unsigned file = 0; file < FILES; file++) {
            verify_file(verifier, file);
            sleep_ms(FILE_PAUSE_MS);
        }
        for (unsigned half = 0; half < 2; half++) {
            unsigned file = half * (FILES / 2) + pass % (FILES / 2);

            verifier->contents[file] ^= 1;
            write_file(verifier, file, pass % 2 ? O_TRUNC : 0);
        }
        atomic_store(&verifier->counters->verifier_ns, now_ns());
    }
}

int main(int count, char **arguments)
{
    char *end = NULL, options[64];
    unsigned long long bytes = count == 3 ? strtoull(arguments[2], &end, 10) : 0;
    struct verifier verifier = {.file_pages = bytes / PAGE_BYTES / FILES, .seeds = {COMMON, own_seed()}};
    const char *folder;

    if (!end || *end || strcmp(arguments[1], "start") || !verifier.file_pages)
        die("usage: integrity start BYTES, at least %u", FILES * PAGE_BYTES);
    background_end("integrity");
    folder = run_path("files");
    if (mkdir(folder, 0700) < 0 && errno != EEXIST)
        die("%s: %s", folder, strerror(errno));
    if (run_in_guest()) {
        umount2(folder, MNT_DETACH); /* of the verifier before */
        snprintf(options, sizeof options, "size=%llu,mode=700", bytes);
        if (mount("memory", folder, "tmpfs", 0, options) < 0)
            die("%s: %s", folder, strerror(errno));
    }
    verifier.counters = counters_open();
    atomic_store(&verifier.counters->verifier_ns, now_ns());
    background_start("integrity", verify_for_good, &verifier);
    return 0;
}
