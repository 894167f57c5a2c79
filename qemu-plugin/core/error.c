/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The one line a person reads about an error. Pure; any thread.
 */
#include "memshare/error.h"

#include <stdarg.h>
#include <stdio.h>

int msh_error_set(MshError *error, int code, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof(error->text), format, arguments);
        va_end(arguments);
    }
    return code;
}
