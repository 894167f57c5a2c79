/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The error rule of all C code here.
 *
 *   0    ok
 *   < 0  -errno: forward it unchanged
 *   > 0  a documented MSH_E_* outcome that the caller must handle
 *
 * Outputs are named ret_x and stay untouched on failure. Whoever causes an error that a person will
 * read writes one line into the MshError it was given; callers that forward do not write again.
 */
#ifndef MEMSHARE_ERROR_H
#define MEMSHARE_ERROR_H

#define MSH_ERROR_BYTES 256

/* One line, lower case, naming what and where. Zero-initialise it. */
typedef struct MshError {
    char text[MSH_ERROR_BYTES];
} MshError;

#pragma GCC visibility push(default) /* as in memshare.h */

/* Writes the line and returns code. error may be NULL. */
int msh_error_set(MshError *error, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#pragma GCC visibility pop

#endif
