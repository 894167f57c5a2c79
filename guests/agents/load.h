/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a guest can be given to do. Each load runs until it is ended, and counts its operations. */
#ifndef MEMSHARE_LOAD_H
#define MEMSHARE_LOAD_H

#include <stddef.h>

#include "counters.h"

/* Reads all files of the image whole, in an order of this guest's own, again and again. An operation is a file. */
_Noreturn void load_cache(struct counters *counters);

/* Asks the web server of this guest for its files, over one connection. An operation is an answer. */
_Noreturn void load_web(struct counters *counters);

/* Makes the web server's files below a folder; at image build. */
void load_web_make_files(const char *folder);

/* Sets and gets values of the redis server of this guest, and compares them. An operation is an answer. */
_Noreturn void load_database(struct counters *counters);

/* Many short processes that take memory, read and write files. An operation is a process. */
_Noreturn void load_compile(struct counters *counters);

/* What each of those processes does; number names what it writes. */
void load_compile_unit(const char *number);

/* Takes most of free memory, fills it with random bytes, frees it, again and again. An operation is a mebibyte filled. */
_Noreturn void load_allocate(struct counters *counters);

/*
 * A connection to a server of this guest; waits up to 10 s for it, then ends the process. In a trial $MEMSHARE_PORT names
 * another port.
 */
int load_connect(unsigned port);

/* Write or read all of it; ends the process when the server is gone. */
void load_send(int fd, const void *bytes, size_t count);
void load_receive(int fd, void *bytes, size_t count);

#endif
