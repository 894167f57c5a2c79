/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The redis protocol: an answer is `+OK` or `$LENGTH` and a value. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"
#include "pattern.h"
#include "run.h"

#define KEYS 8192u
#define VALUE_BYTES 1024u
#define WRITES_PERCENT 30u
#define PORT 6379u

static uint32_t versions[KEYS]; /* 0: not set yet */

static void fill(char *value, unsigned key)
{
    uint64_t seed = pattern_seed(own_seed(), key, versions[key]);

    for (size_t at = 0; at < VALUE_BYTES; at += sizeof(uint64_t)) {
        uint64_t word = pattern_word(seed + at);

        memcpy(value + at, &word, sizeof word);
    }
}

static void read_line(int fd, char *line, size_t room)
{
    size_t count = 0;

    do {
        if (count == room - 1)
            die("redis answered with a line without end");
        load_receive(fd, line + count, 1);
    } while (line[count++] != '\n');
    line[count] = 0;
}

static void set_value(int fd, unsigned key)
{
    char request[VALUE_BYTES + 96], line[64];
    int length = snprintf(request, sizeof request, "*3\r\n$3\r\nSET\r\n$8\r\nkey:%04u\r\n$%u\r\n", key, VALUE_BYTES);

    versions[key]++;
    fill(request + length, key);
    memcpy(request + length + VALUE_BYTES, "\r\n", 2);
    load_send(fd, request, (size_t)length + VALUE_BYTES + 2);
    read_line(fd, line, sizeof line);
    if (strcmp(line, "+OK\r\n"))
        die("redis answered to SET: %.*s", (int)strcspn(line, "\r\n"), line);
}

/* Whether it is what was set. */
static int get_value(int fd, unsigned key)
{
    char request[64], line[64], wanted[VALUE_BYTES], found[VALUE_BYTES + 2];
    int length = snprintf(request, sizeof request, "*2\r\n$3\r\nGET\r\n$8\r\nkey:%04u\r\n", key);

    load_send(fd, request, (size_t)length);
    read_line(fd, line, sizeof line);
    if (strtol(line + 1, NULL, 10) != VALUE_BYTES)
        return 0;
    load_receive(fd, found, sizeof found);
    fill(wanted, key);
    return !memcmp(found, wanted, VALUE_BYTES);
}

_Noreturn void load_database(struct counters *counters)
{
    uint64_t number = own_seed();
    int fd = load_connect(PORT);

    for (;;) {
        uint64_t choice = pattern_word(number++);
        unsigned key = (unsigned)(choice % KEYS);
        uint64_t began = now_ns();

        if (!versions[key] || (choice >> 32) % 100 < WRITES_PERCENT)
            set_value(fd, key);
        else if (!get_value(fd, key)) {
            counters_wrong(counters, "database: key %u is not what was set", key);
            fd = load_connect(PORT); /* what is left of that answer is nobody's */
        }
        counters_operation(counters, began);
    }
}
