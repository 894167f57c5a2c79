/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The object /objects/memshare0, by which any QMP client sees and steers this guest's sharing.
 *
 * Properties: `stats` (read: one JSON object with the names of memshare/stats.h), `mode`,
 * `scan-rate` (pages per second), `cpu-limit` (percent of a core). None of them waits.
 *
 * Threads: main loop only.
 */
#ifndef MEMSHARE_PLUGIN_QOM_H
#define MEMSHARE_PLUGIN_QOM_H

#include "guard.h"
#include "memshare/memshare.h"

#define MSH_CPU_LIMIT_PERCENT_MAX 100u

/* -EEXIST the name is taken · -ENOSYS no type to make the object of. */
int msh_qom_publish(MshEngine *engine, MshGuard *guard, MshError *error);

/* The same for a guest whose engine could not even be made: only `stats`, saying why. */
int msh_qom_publish_refusal(const char *group, const char *reason, MshError *error);

#endif
