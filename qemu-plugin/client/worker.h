/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine at work: one pass, and the two threads that repeat it. The scan thread visits pages and
 * asks the exchange, and may be slowed down at will; the window thread does nothing but open windows,
 * so that a guest never waits for a thread that was put to sleep (I8).
 */
#ifndef MSH_WORKER_H
#define MSH_WORKER_H

#include "engine.h"

/* Between two passes that sight everything anew: twice as long each time, for as long as there is cause for them. */
#define MSH_ANEW_REST_MIN_NS 4000000000ull

/* Work lock. A complete pass on this thread, windows included. */
int msh_worker_pass(MshEngine *engine, MshError *error);

/* Start lock. Both threads, or none: it may be called again then. */
int msh_worker_start(MshEngine *engine, MshError *error);
/* If they were started; nobody may start them meanwhile. */
void msh_worker_stop(MshEngine *engine);

/* Tells the exchange of slots given back and closes spent views, unless the scan thread is at work
 * and will. */
void msh_worker_settle(MshEngine *engine);

/* No page is tracked any more, nor any registration kept. Memory lock. */
void msh_worker_stop_tracking(MshEngine *engine);

#endif
