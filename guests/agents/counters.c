/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "counters.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run.h"

static uint64_t bounds_us[BUCKETS];

uint64_t counters_bound_us(unsigned bucket)
{
    if (!bounds_us[0]) {
        bounds_us[0] = 1;
        for (unsigned i = 1; i < BUCKETS; i++)
            bounds_us[i] = bounds_us[i - 1] + (bounds_us[i - 1] >= 8 ? bounds_us[i - 1] / 8 : 1);
    }
    return bounds_us[bucket];
}

struct counters *counters_open(void)
{
    const char *path = run_path("counters");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    struct counters *counters;
    uint64_t never = 0;

    if (fd < 0 || ftruncate(fd, sizeof *counters) < 0)
        die("%s: %s", path, strerror(errno));
    counters = mmap(NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (counters == MAP_FAILED)
        die("%s: %s", path, strerror(errno));
    close(fd);
    atomic_compare_exchange_strong(&counters->since_ns, &never, now_ns());
    return counters;
}

void counters_operation(struct counters *counters, uint64_t began_ns)
{
    uint64_t took_us = (now_ns() - began_ns) / 1000;
    unsigned low = 0, high = BUCKETS - 1;

    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (counters_bound_us(middle) < took_us)
            low = middle + 1;
        else
            high = middle;
    }
    atomic_fetch_add(&counters->latency[low], 1);
}

void counters_wrong(struct counters *counters, const char *format, ...)
{
    va_list arguments;

    if (atomic_exchange(&counters->wrong_claimed, 1))
        return;
    va_start(arguments, format);
    vsnprintf(counters->wrong, sizeof counters->wrong, format, arguments);
    va_end(arguments);
    atomic_store(&counters->wrong_written, 1);
}
