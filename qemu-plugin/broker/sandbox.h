/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Gives up what the broker does not need once everything is open: capabilities, privileges of
 * programs it might execute, and all system calls but a short list. Another one kills the process:
 * a broker that is being turned against its clients is better dead (I7).
 */
#ifndef MSH_SANDBOX_H
#define MSH_SANDBOX_H

#include "memshare/error.h"

int msh_sandbox_enter(MshError *error);

#endif
