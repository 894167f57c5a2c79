/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The broker's log: stderr, one line a decision, `level event key=value ...`. Never per page.
 * Values that come from a client are printable (codec) and stand in double quotes; session.c
 * removes quotes from names, so that no client can forge a key.
 */
#ifndef MSH_LOG_H
#define MSH_LOG_H

#include "memshare/error.h"

typedef enum MshLogLevel {
    MSH_LOG_ERROR = 0,
    MSH_LOG_INFO = 1,
    MSH_LOG_DEBUG = 2,
} MshLogLevel;

void msh_log_set_level(MshLogLevel level);

/* 0 and *ret_level, or -EINVAL. */
int msh_log_level_parse(const char *name, MshLogLevel *ret_level);

void msh_log(MshLogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define msh_log_error(...) msh_log(MSH_LOG_ERROR, __VA_ARGS__)
#define msh_log_info(...) msh_log(MSH_LOG_INFO, __VA_ARGS__)
#define msh_log_debug(...) msh_log(MSH_LOG_DEBUG, __VA_ARGS__)

#endif
