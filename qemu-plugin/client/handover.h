/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What goes between the engine's threads: candidates to the window thread, slots that nobody maps back to the scan
 * thread, which alone talks to the exchange. All but msh_handover_add() take the queue lock.
 */
#ifndef MSH_HANDOVER_H
#define MSH_HANDOVER_H

#include "engine.h"

/* False: there is no memory for it, and its slot is the caller's to give back. */
bool msh_handover_add(MshCandidates *list, MshCandidate candidate);

/* Work lock. What is pending, to the window thread. */
void msh_handover_candidates(MshEngine *engine);

/* Work lock. Nothing new is shared: what hints brought is given back, to be asked about when that is over. */
void msh_handover_turn_down(MshEngine *engine);

/* Work lock. Whether more may be visited before the window thread has caught up. A pass begins when all that
 * the last one found is merged: it would only find it again. */
bool msh_handover_has_room(MshEngine *engine);

/* Work lock. Whether nothing that waits anywhere names a slot. */
bool msh_handover_is_idle(MshEngine *engine);

/* Hands slots back, to be told to the exchange in time. */
void msh_handover_return(MshEngine *engine, const MshSlot *slots, size_t count);

/* Work lock. Tells the exchange of those that came back. */
void msh_handover_tell_returned(MshEngine *engine);

#endif
