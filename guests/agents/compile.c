/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"
#include "pattern.h"
#include "run.h"

#define UNIT_MEMORY_BYTES (8u << 20)
#define OBJECT_BYTES (128u << 10)
#define OBJECTS 32u /* linked, then removed */

/* On a disk as a build's files are; the folder of the trial otherwise. */
static const char *object_path(unsigned number)
{
    static char path[4096];
    char name[32];

    snprintf(name, sizeof name, "object.%u", number % OBJECTS);
    if (run_in_guest())
        snprintf(path, sizeof path, "/var/tmp/%s", name);
    else
        snprintf(path, sizeof path, "%s", run_path(name));
    return path;
}

/* The memory of a compiler that grows and goes, and an object file. */
void load_compile_unit(const char *number)
{
    uint64_t seed = pattern_seed(own_seed(), 0, strtoul(number, NULL, 10));
    uint64_t *memory =
        mmap(NULL, UNIT_MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const char *path = object_path((unsigned)strtoul(number, NULL, 10));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (memory == MAP_FAILED || fd < 0)
        die("%s: %s", path, strerror(errno));
    for (size_t page = 0; page < UNIT_MEMORY_BYTES / PAGE_BYTES; page++)
        pattern_page(memory + page * PAGE_WORDS, pattern_seed(seed, 1, page));
    if (write(fd, memory, OBJECT_BYTES) != OBJECT_BYTES)
        die("%s: %s", path, strerror(errno));
    close(fd);
}

static void run_unit(unsigned number)
{
    char text[16];
    int status;
    pid_t child;

    snprintf(text, sizeof text, "%u", number);
    child = fork();
    if (child < 0)
        die("fork: %s", strerror(errno));
    if (child == 0) {
        execl("/proc/self/exe", "load", "unit", text, (char *)NULL);
        _exit(127);
    }
    if (waitpid(child, &status, 0) < 0 || status)
        die("unit %u ended with status %d", number, status);
}

static void link_objects(void)
{
    static char bytes[OBJECT_BYTES];

    for (unsigned object = 0; object < OBJECTS; object++) {
        int fd = open(object_path(object), O_RDONLY);

        if (fd < 0 || read(fd, bytes, sizeof bytes) < 0)
            die("%s: %s", object_path(object), strerror(errno));
        close(fd);
        unlink(object_path(object));
    }
}

_Noreturn void load_compile(struct counters *counters)
{
    for (unsigned number = 0;; number++) {
        uint64_t began = now_ns();

        run_unit(number);
        if (number % OBJECTS == OBJECTS - 1)
            link_objects();
        counters_operation(counters, began);
    }
}
