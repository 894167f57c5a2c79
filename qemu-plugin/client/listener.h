/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the exchange tells the engine: slots that match, pages that it asks for, that it is connected or no longer, that a
 * segment empties. Called within the exchange's verbs, so under the work lock.
 */
#ifndef MSH_LISTENER_H
#define MSH_LISTENER_H

#include "engine.h"

MshExchangeEvents msh_listener_events(MshEngine *engine);

#endif
