/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line of memshared.
 */
#ifndef MSH_OPTIONS_H
#define MSH_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "log.h"
#include "memshare/error.h"

enum { MSH_E_OPTIONS_DONE = 1 }; /* --help or --version was printed */

typedef struct MshOptions {
    const char *runtime_dir;
    const char *control_path; /* NULL: control.sock in runtime_dir */
    char **groups;            /* owned, the names are of argv */
    unsigned group_count;
    bool allow_by_mode;
    bool no_sandbox;
    mode_t socket_mode;
    gid_t socket_group;         /* MSH_NO_GROUP: leave it */
    uint64_t store_limit_bytes; /* of each group; 0: no limit */
    MshLogLevel log_level;
} MshOptions;

/* 0 · MSH_E_OPTIONS_DONE · -EINVAL and what is wrong. */
int msh_options_parse(MshOptions *ret_options, int argc, char **argv, MshError *error);
void msh_options_fini(MshOptions *options);

#endif
