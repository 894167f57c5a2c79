/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The commands of the control socket: one JSON object in, one out. docs/man/memshared.rst lists
 * them.
 */
#ifndef MSH_COMMANDS_H
#define MSH_COMMANDS_H

#include <stddef.h>

#include "broker.h"

/* Returns the answer, one line with its newline; the caller frees it. What is wrong with the line
 * is an answer too: {"ok":false,"error":"..."}. */
char *msh_command_run(MshBroker *broker, const char *line, size_t line_bytes,
                      size_t *ret_answer_bytes);

#endif
