/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the programs inside a guest have in common: where their files are, time, complaints, and one process of each kind
 * that stays in the background.
 *
 * Files are in /run/memshare. Where the programs are tried outside of a guest, $MEMSHARE_RUN names another folder, which
 * also holds the machine-id and meminfo of the trial.
 */
#ifndef MEMSHARE_RUN_H
#define MEMSHARE_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u

/* Ends the process with one line. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The path of a file of ours; makes the folder. The next call overwrites what this one returned. */
const char *run_path(const char *name);

/* Whether this is a guest, not a trial outside of one. */
bool run_in_guest(void);

uint64_t now_ns(void);
void sleep_ms(unsigned milliseconds);

/* A number that is this guest's own: made from its machine id. */
uint64_t own_seed(void);

/* A field of /proc/meminfo, such as "MemFree". */
uint64_t meminfo_bytes(const char *field);

/* Ends the background process of that name and all that it started; returns when they are gone. */
void background_end(const char *name);

/*
 * Ends the one before, then runs work(argument), which never returns, in a session of its own without the caller's
 * files: guest-exec waits until nobody holds its pipe. Its complaints go to NAME.log.
 */
void background_start(const char *name, void (*work)(void *argument), void *argument);

/* Whether one of that name runs. */
bool background_runs(const char *name);

#endif
