/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"
#include "pattern.h"
#include "run.h"

static struct {
    char **paths;
    size_t count, room;
} files;

static int keep(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)place;
    if (kind != FTW_F || !S_ISREG(status->st_mode) || status->st_size == 0)
        return 0;
    if (files.count == files.room) {
        files.room = files.room ? files.room * 2 : 4096;
        files.paths = realloc(files.paths, files.room * sizeof *files.paths);
        if (!files.paths)
            die("no memory for the names of files");
    }
    files.paths[files.count++] = strdup(path);
    return 0;
}

static void shuffle(uint64_t seed)
{
    for (size_t left = files.count; left > 1; left--) {
        size_t chosen = pattern_word(seed + left) % left;
        char *path = files.paths[chosen];

        files.paths[chosen] = files.paths[left - 1];
        files.paths[left - 1] = path;
    }
}

static void read_whole(const char *path)
{
    static char bytes[128 << 10];
    int fd = open(path, O_RDONLY);

    if (fd < 0)
        return; /* removed meanwhile */
    while (read(fd, bytes, sizeof bytes) > 0)
        ;
    close(fd);
}

_Noreturn void load_cache(struct counters *counters)
{
    static const char *const folders[] = {"/usr", "/var/lib", "/var/www", "/opt"};

    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && run_in_guest(); i++)
        nftw(folders[i], keep, 16, FTW_PHYS | FTW_MOUNT);
    if (!run_in_guest())
        nftw(run_path("."), keep, 16, FTW_PHYS);
    if (!files.count)
        die("no files to read");
    shuffle(own_seed());
    for (size_t file = 0;; file = (file + 1) % files.count) {
        uint64_t began = now_ns();

        read_whole(files.paths[file]);
        counters_operation(counters, began);
    }
}
