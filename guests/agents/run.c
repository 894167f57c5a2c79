/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Noreturn void die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

bool run_in_guest(void)
{
    return getenv("MEMSHARE_RUN") == NULL;
}

/* A host may have a /run/memshare of another kind. */
static const char *guest_folder(void)
{
    if (access("/usr/lib/memshare/guest-agent", X_OK) < 0)
        die("this is not one of memshare's guests, and MEMSHARE_RUN does not say where to try this");
    return "/run/memshare";
}

const char *run_path(const char *name)
{
    static char path[PATH_MAX];
    const char *folder = run_in_guest() ? guest_folder() : getenv("MEMSHARE_RUN");

    if (mkdir(folder, 0755) < 0 && errno != EEXIST)
        die("%s: %s", folder, strerror(errno));
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sleep_ms(unsigned milliseconds)
{
    struct timespec time = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000};

    while (nanosleep(&time, &time) < 0 && errno == EINTR)
        ;
}

/* What is told about this guest, or, in a trial, by a file of the same name in its folder. */
static FILE *open_fact(const char *path)
{
    FILE *file;

    if (!run_in_guest())
        path = run_path(strrchr(path, '/') + 1);
    file = fopen(path, "r");
    if (!file)
        die("%s: %s", path, strerror(errno));
    return file;
}

uint64_t own_seed(void)
{
    static uint64_t seed;
    FILE *file;
    int byte;

    if (seed)
        return seed;
    file = open_fact("/etc/machine-id");
    seed = 0xcbf29ce484222325u; /* FNV-1a */
    while ((byte = fgetc(file)) != EOF)
        seed = (seed ^ (uint64_t)byte) * 0x100000001b3u;
    fclose(file);
    return seed;
}

uint64_t meminfo_bytes(const char *field)
{
    FILE *file = open_fact("/proc/meminfo");
    size_t length = strlen(field);
    char line[128];
    unsigned long long kibibytes;

    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, field, length) || line[length] != ':')
            continue;
        if (sscanf(line + length + 1, "%llu", &kibibytes) == 1) {
            fclose(file);
            return kibibytes << 10;
        }
    }
    die("/proc/meminfo: no %s", field);
}

/* The lock is held for as long as the process, or a child of it that has not yet become another program, lives. */
static int open_lock(const char *name)
{
    char file[64];
    int fd;

    snprintf(file, sizeof file, "%s.pid", name);
    fd = open(run_path(file), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s: %s", run_path(file), strerror(errno));
    return fd;
}

bool background_runs(const char *name)
{
    int fd = open_lock(name);
    bool runs = flock(fd, LOCK_SH | LOCK_NB) < 0;

    close(fd);
    return runs;
}

/* Returns the lock, taken. */
static int take_lock(const char *name)
{
    int fd = open_lock(name);
    char text[32] = "";

    /* Only while the lock is taken does the number name a process of ours. */
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (pread(fd, text, sizeof text - 1, 0) > 0 && atoi(text) > 1)
            kill(-atoi(text), SIGKILL);
        sleep_ms(10);
    }
    return fd;
}

void background_end(const char *name)
{
    close(take_lock(name));
}

void background_start(const char *name, void (*work)(void *argument), void *argument)
{
    int lock = take_lock(name);
    char file[64], text[32];
    int length, null, log;
    pid_t child = fork();

    if (child < 0)
        die("fork: %s", strerror(errno));
    if (child > 0)
        return;
    setsid();
    length = snprintf(text, sizeof text, "%d\n", (int)getpid());
    if (ftruncate(lock, 0) < 0 || pwrite(lock, text, (size_t)length, 0) != length)
        die("%s.pid: %s", name, strerror(errno));
    snprintf(file, sizeof file, "%s.log", name);
    null = open("/dev/null", O_RDWR);
    log = open(run_path(file), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(null, 0);
    dup2(log < 0 ? null : log, 1);
    dup2(log < 0 ? null : log, 2);
    work(argument);
    _exit(0);
}
