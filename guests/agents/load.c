/* SPDX-License-Identifier: GPL-2.0-or-later */
/* load NAME: ends the load before and starts that one in the background; `idle` only ends it. */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "run.h"

#define CONNECT_TRIES 100
#define CONNECT_PAUSE_MS 100

struct load {
    const char *name;
    void (*run)(struct counters *counters);
    unsigned port; /* of the server that it needs; 0: none */
};

static const struct load loads[] = {
    {"cache", load_cache, 0},       {"web", load_web, 80},
    {"database", load_database, 6379}, {"compile", load_compile, 0},
    {"allocate", load_allocate, 0},
};

static int try_connect(unsigned port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;

    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

int load_connect(unsigned port)
{
    if (!run_in_guest() && getenv("MEMSHARE_PORT"))
        port = (unsigned)atoi(getenv("MEMSHARE_PORT"));
    for (int tries = 0; tries < CONNECT_TRIES; tries++) {
        int fd = try_connect(port);

        if (fd >= 0)
            return fd;
        sleep_ms(CONNECT_PAUSE_MS);
    }
    die("nothing answers at port %u of this guest", port);
}

void load_send(int fd, const void *bytes, size_t count)
{
    for (size_t sent = 0; sent < count;) {
        ssize_t more = send(fd, (const char *)bytes + sent, count - sent, MSG_NOSIGNAL);

        if (more <= 0)
            die("the server went away: %s", strerror(errno));
        sent += (size_t)more;
    }
}

void load_receive(int fd, void *bytes, size_t count)
{
    for (size_t received = 0; received < count;) {
        ssize_t more = recv(fd, (char *)bytes + received, count - received, 0);

        if (more <= 0)
            die("the server went away: %s", more ? strerror(errno) : "it closed the connection");
        received += (size_t)more;
    }
}

static void run(void *argument)
{
    const struct load *load = argument;

    load->run(counters_open());
}

static const struct load *find(const char *name)
{
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++)
        if (!strcmp(loads[i].name, name))
            return &loads[i];
    return NULL;
}

int main(int count, char **arguments)
{
    const char *name = count >= 2 ? arguments[1] : "";
    const struct load *load = find(name);
    struct counters *counters;

    if (count == 3 && !strcmp(name, "unit")) {
        load_compile_unit(arguments[2]);
        return 0;
    }
    if (count == 3 && !strcmp(name, "files")) {
        load_web_make_files(arguments[2]);
        return 0;
    }
    if (count != 2 || (!load && strcmp(name, "idle")))
        die("usage: load idle|cache|web|database|compile|allocate");
    /* Asked for in an image that has no such server: say so now, not in a log. */
    if (load && load->port)
        close(load_connect(load->port));
    counters = counters_open();
    atomic_store(&counters->load_began_ns, 0);
    background_end("load");
    snprintf(counters->load, sizeof counters->load, "%s", name);
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
        atomic_store(&counters->latency[bucket], 0);
    atomic_store(&counters->since_ns, now_ns());
    if (load) {
        background_start("load", run, (void *)load);
        atomic_store(&counters->load_began_ns, now_ns());
    }
    return 0;
}
