/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two processes share equal pages through a broker.
 *
 *   memshared --runtime-dir /tmp/ms --group default --allow-by-mode &
 *   cc share.c $(pkg-config --cflags --libs memshare) -o share && ./share /tmp/ms/default.sock
 */
#include <memshare/memshare.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 64, TRIES = 1000, TRY_US = 10000 };

static char *page(char *memory, size_t i)
{
    return memory + i * MSH_PAGE_BYTES;
}

static int share(const char *who, const char *socket)
{
    MshConfig config = {.socket_path = socket, .guest_name = who, .mode = MSH_MODE_CONTENT,
                        .scan_rate_pages = MSH_RATE_UNLIMITED};
    MshEngine *engine = NULL;
    MshError error = {0};
    MshStats stats = {0};
    size_t length_bytes = PAGES * MSH_PAGE_BYTES;
    char *memory = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (size_t i = 0; i < PAGES; i++)
        snprintf(page(memory, i), MSH_PAGE_BYTES, "page %zu of both", i);

    if (msh_engine_new(&config, &engine, &error) < 0 ||
        msh_engine_register(engine, memory, length_bytes, &error) < 0 ||
        msh_engine_start(engine, &error) < 0) {
        fprintf(stderr, "%s: %s\n", who, error.text);
        return 1;
    }
    for (int i = 0; i < TRIES && stats.shared_pages < PAGES / 2; i++) {
        usleep(TRY_US);
        msh_engine_stats(engine, &stats);
    }
    strcpy(page(memory, 0), who); /* from here on this page is ours alone */
    int wrong = strcmp(page(memory, 0), who) != 0 || stats.shared_pages < PAGES / 2;
    for (size_t i = 1; i < PAGES; i++) {
        char expected[64];
        snprintf(expected, sizeof expected, "page %zu of both", i);
        wrong |= strcmp(page(memory, i), expected) != 0;
    }
    printf("%s: %s\n", who, wrong ? "not shared, or wrong contents" : "shared, contents right");
    msh_engine_free(engine); /* makes every page private again */
    return wrong || strcmp(page(memory, 0), who) != 0;
}

int main(int argc, char **argv)
{
    int status = 1;
    pid_t child = argc == 2 ? fork() : -1; /* before there is an engine: each process has its own */
    if (child < 0)
        return 2;
    if (child == 0)
        return share("child", argv[1]);
    int failed = share("parent", argv[1]);
    return waitpid(child, &status, 0) != child || status || failed;
}
