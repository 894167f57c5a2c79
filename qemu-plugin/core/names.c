/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Spellings of modes and states. They are an interface: operators type them and scripts compare
 * them. Pure; any thread.
 */
#include <errno.h>
#include <string.h>

#include "memshare/stats.h"

static const char *const MODE_NAMES[] = {
    [MSH_MODE_OFF] = "off",
    [MSH_MODE_ZERO] = "zero",
    [MSH_MODE_CONTENT] = "content",
};

static const char *const STATE_NAMES[] = {
    [MSH_STATE_STARTING] = "starting",
    [MSH_STATE_RUNNING] = "running",
    [MSH_STATE_PAUSED] = "paused",
    [MSH_STATE_DRAINING] = "draining",
    [MSH_STATE_OFF] = "off",
    [MSH_STATE_REFUSED] = "refused",
    [MSH_STATE_WAITING_FOR_BROKER] = "waiting-for-broker",
};

enum {
    MODES = sizeof(MODE_NAMES) / sizeof(MODE_NAMES[0]),
    STATES = sizeof(STATE_NAMES) / sizeof(STATE_NAMES[0]),
};

const char *msh_mode_name(uint32_t mode)
{
    return mode < MODES ? MODE_NAMES[mode] : NULL;
}

const char *msh_state_name(uint32_t state)
{
    return state < STATES ? STATE_NAMES[state] : NULL;
}

int msh_mode_parse(const char *name, MshMode *ret_mode)
{
    for (uint32_t mode = 0; mode < MODES; mode++) {
        if (strcmp(name, MODE_NAMES[mode]) == 0) {
            *ret_mode = (MshMode)mode;
            return 0;
        }
    }
    return -EINVAL;
}
