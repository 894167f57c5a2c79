/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Files of 1 to 64 KiB, whose contents anybody can make again: the client compares what it gets. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"
#include "pattern.h"
#include "run.h"

#define FILES 256u
#define LARGEST_BYTES (64u << 10)
#define HEADER_BYTES 1024u
#define FAMILY 0x776562u
#define PORT 80u

static size_t file_bytes(unsigned file)
{
    return (size_t)1024 << file % 7;
}

static void fill(uint64_t *words, unsigned file)
{
    for (size_t page = 0; page < LARGEST_BYTES / PAGE_BYTES; page++)
        pattern_page(words + page * PAGE_WORDS, pattern_seed(FAMILY, file, page));
}

void load_web_make_files(const char *folder)
{
    static uint64_t words[LARGEST_BYTES / sizeof(uint64_t)];

    for (unsigned file = 0; file < FILES; file++) {
        char path[4096];
        int fd;

        snprintf(path, sizeof path, "%s/%03u", folder, file);
        fill(words, file);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0 || write(fd, words, file_bytes(file)) != (ssize_t)file_bytes(file))
            die("%s: %s", path, strerror(errno));
        close(fd);
    }
}

/* Reads up to the end of the headers, byte for byte of what lies in the buffer, and what is there of the body. */
struct answer {
    char bytes[HEADER_BYTES + LARGEST_BYTES];
    size_t header_bytes, body_bytes;
};

static void read_answer(int fd, struct answer *answer)
{
    size_t count = 0, body;
    char *end, *length;

    do {
        ssize_t more = read(fd, answer->bytes + count, HEADER_BYTES - 1 - count);

        if (more <= 0)
            die("the web server went away");
        count += (size_t)more;
        answer->bytes[count] = 0;
        end = memmem(answer->bytes, count, "\r\n\r\n", 4);
    } while (!end && count < HEADER_BYTES - 1);
    length = end ? memmem(answer->bytes, (size_t)(end - answer->bytes), "Content-Length: ", 16) : NULL;
    if (!length || strncmp(answer->bytes, "HTTP/1.1 200 ", 13))
        die("the web server answered: %.*s", (int)strcspn(answer->bytes, "\r\n"), answer->bytes);
    answer->header_bytes = (size_t)(end + 4 - answer->bytes);
    answer->body_bytes = strtoul(length + 16, NULL, 10);
    if (answer->body_bytes > LARGEST_BYTES)
        die("the web server answered with %zu bytes", answer->body_bytes);
    body = count - answer->header_bytes;
    load_receive(fd, answer->bytes + count, answer->body_bytes - body);
}

/* A piece of each page: making all of it again would cost more than the server's work. */
static int is_right(const struct answer *answer, unsigned file)
{
    const char *body = answer->bytes + answer->header_bytes;

    if (answer->body_bytes != file_bytes(file))
        return 0;
    for (size_t at = 0; at < answer->body_bytes; at += PAGE_BYTES) {
        uint64_t wanted = pattern_word(pattern_seed(FAMILY, file, at / PAGE_BYTES));

        if (memcmp(body + at, &wanted, sizeof wanted))
            return 0;
    }
    return 1;
}

_Noreturn void load_web(struct counters *counters)
{
    static struct answer answer;
    uint64_t seed = own_seed();
    int fd = load_connect(PORT);

    for (;;) {
        unsigned file = (unsigned)(pattern_word(seed++) % FILES);
        uint64_t began = now_ns();
        char request[96];
        int length = snprintf(request, sizeof request, "GET /files/%03u HTTP/1.1\r\nHost: guest\r\n\r\n", file);

        load_send(fd, request, (size_t)length);
        read_answer(fd, &answer);
        counters_operation(counters, began);
        if (!is_right(&answer, file))
            counters_wrong(counters, "web: file %u is not what it was", file);
    }
}
