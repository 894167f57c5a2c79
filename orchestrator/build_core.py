# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the C source of ``memshare._core``: the engine's public API for Python.

Run by meson with the path to write. cffi in API mode compiles the declarations below against the
real headers, so a struct that has changed does not build. Numbers are taken from the headers too.
"""

import sys

import cffi

CDEF = """
typedef struct MshEngine MshEngine;
typedef struct { char text[...]; ...; } MshError;
typedef struct {
    const char *socket_path;
    const char *group;
    const char *guest_name;
    int mode;
    uint64_t scan_rate_pages;
    uint32_t cpu_limit_percent;
    bool (*nothing_pinned)(void *opaque);
    void *opaque;
    bool is_eager;
    uint64_t patience_ns;
} MshConfig;

typedef struct {
    char version[...];
    uint32_t protocol;
    uint32_t state;
    char refusal[...];
    char group[...];
    uint32_t mode;
    uint64_t scan_rate_pages;
    uint32_t cpu_limit_percent;
    uint64_t ram_bytes, present_pages, shared_pages, broken_pages, zero_pages, unique_pages,
        volatile_pages, tracked_pages, saved_content_bytes, saved_zero_bytes, overhead_bytes, scanned_pages,
        skipped_pages, changed_pages, hashed_pages, merged_pages, zeroed_pages, breaks, rebuilt_pages, compare_failures,
        pinned_skips, scan_cpu_ns, windows;
    uint64_t window_time_ns[...];
    uint64_t slept_faults, mappings, mappings_limit, passes, pass_age_ns;
    ...;
} MshStats;

#define MSH_RATE_UNLIMITED ...

int msh_engine_new(const MshConfig *config, MshEngine **ret_engine, MshError *error);
MshEngine *msh_engine_free(MshEngine *engine);
int msh_engine_start(MshEngine *engine, MshError *error);
int msh_engine_detach(MshEngine *engine, MshError *error);
bool msh_engine_release(MshEngine *engine, uint64_t budget_ns);
int msh_engine_register(MshEngine *engine, void *address, size_t length_bytes, MshError *error);
int msh_engine_unregister(MshEngine *engine, void *address, MshError *error);
int msh_engine_set_mode(MshEngine *engine, int mode);
int msh_engine_set_scan_rate(MshEngine *engine, uint64_t pages_per_second);
int msh_engine_set_cpu_limit(MshEngine *engine, uint32_t percent);
int msh_engine_set_ceiling(MshEngine *engine, int ceiling, const char *reason);
int msh_engine_hold(MshEngine *engine, bool hold);
int msh_engine_scan_once(MshEngine *engine, MshError *error);
void msh_engine_stats(const MshEngine *engine, MshStats *ret_stats);
const char *msh_mode_name(uint32_t mode);
const char *msh_state_name(uint32_t state);
"""

SOURCE = """
#include "memshare/memshare.h"

/* The answer of a process that never does I/O into its registered memory. */
static bool never_pinned(void *opaque)
{
    (void)opaque;
    return true;
}
"""


def main() -> None:
    """Write the source to the path given."""
    builder = cffi.FFI()
    builder.cdef(CDEF + "bool never_pinned(void *opaque);")
    builder.set_source("memshare._core", SOURCE)
    builder.emit_c_code(sys.argv[1])


if __name__ == "__main__":
    main()
