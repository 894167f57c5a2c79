/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See log.h. Single-threaded: the level is a plain variable.
 */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 1024

static const char *const level_names[] = {"error", "info", "debug"};
static MshLogLevel current_level = MSH_LOG_INFO;

void msh_log_set_level(MshLogLevel level)
{
    current_level = level;
}

int msh_log_level_parse(const char *name, MshLogLevel *ret_level)
{
    for (unsigned i = 0; i < sizeof(level_names) / sizeof(level_names[0]); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *ret_level = (MshLogLevel)i;
            return 0;
        }
    }
    return -EINVAL;
}

void msh_log(MshLogLevel level, const char *format, ...)
{
    char line[LINE_BYTES];
    va_list arguments;
    int used, text;

    if (level > current_level)
        return;
    used = snprintf(line, sizeof(line), "%s ", level_names[level]);
    va_start(arguments, format);
    text = vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, arguments);
    va_end(arguments);
    if (text < 0)
        return;
    used += text;
    if (used > LINE_BYTES - 2)
        used = LINE_BYTES - 2;
    line[used++] = '\n';
    /* One write a line, so that lines of several writers to a journal stay whole. A log that cannot
     * be written is no reason to stop serving. */
    if (write(STDERR_FILENO, line, (size_t)used) < 0)
        return;
}
