/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "audit.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

void msh_audit_add(MshAudit *audit, const char *format, ...)
{
    if (audit->problems < MSH_AUDIT_TEXTS) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(audit->texts[audit->problems], MSH_TEXT_BYTES, format, arguments);
        va_end(arguments);
    }
    audit->problems++;
}

void msh_audit_compare(MshAudit *audit, const char *what, uint64_t counted, uint64_t found)
{
    if (counted != found)
        msh_audit_add(audit, "%s: %" PRIu64 " counted, %" PRIu64 " found", what, counted, found);
}
