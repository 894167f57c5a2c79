/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an audit of a group found: how much was looked at, how many problems there are, and the first of
 * them in words. Every module that keeps counts adds what does not hold of its own.
 *
 * Pure.
 */
#ifndef MSH_AUDIT_H
#define MSH_AUDIT_H

#include <stdint.h>

#include "memshare/stats.h"

enum { MSH_AUDIT_TEXTS = 16 };

typedef struct MshAudit {
    uint64_t slots, grants, entries, hashed; /* looked at */
    uint64_t problems;
    char texts[MSH_AUDIT_TEXTS][MSH_TEXT_BYTES]; /* of the first problems */
} MshAudit;

void msh_audit_add(MshAudit *audit, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A problem unless both are equal. what: of which things the one is their count and the other their
 * number. */
void msh_audit_compare(MshAudit *audit, const char *what, uint64_t counted, uint64_t found);

#endif
