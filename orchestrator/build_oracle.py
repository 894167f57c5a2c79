# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the C source of ``memshare._oracle``: contents of guests' pages counted, for measurements.

Run by meson with the path to write, as build_core.py is. An extension of its own, since nothing that shares
memory may depend on it.
"""

import sys

import cffi

CDEF = """
typedef struct { char text[...]; ...; } MshError;
typedef struct { int32_t pid; uint64_t start; uint64_t pages; const uint8_t *chosen; } MshContentsRam;
typedef struct { uint64_t zero_pages; uint64_t distinct_pages; } MshContentsCount;
int msh_contents_count(const MshContentsRam *rams, uint32_t count, uint32_t threads,
                       MshContentsCount *ret_count, MshError *error);
"""


def main() -> None:
    """Write the source to the path given."""
    builder = cffi.FFI()
    builder.cdef(CDEF)
    builder.set_source("memshare._oracle", '#include "contents.h"')
    builder.emit_c_code(sys.argv[1])


if __name__ == "__main__":
    main()
