# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker's protocol in Python, written from protocol.h and not from its implementation.

A second pair of eyes on the layout: a change of either side alone turns tests red.
"""

import ctypes
import ctypes.util
import json
import struct
from enum import IntEnum
from pathlib import Path

import msgspec

MAGIC = 0x3148534D
PAGE_BYTES = 4096
SEGMENT_SLOTS = (64 << 20) // PAGE_BYTES
SECRET_BYTES = 192
NAME_BYTES = 64

HEADER = struct.Struct("=IHH")
HELLO = struct.Struct("=IHHIIQ64s")
WELCOME = struct.Struct("=IHHIIQ64s192s")
REFUSED = struct.Struct("=IHH192s")
SEGMENT = struct.Struct("=IHHII")
REQUEST = struct.Struct("=QIIHHI")
REPLY = struct.Struct("=QIIH6x")

FEATURE_EMPTYING = 1
FEATURE_LEFT = 2

RING_ENTRIES = 4096
RING_OUTSTANDING = 1024
RING_PAGES = 256
REQUESTS_PUSHED, REQUESTS_POPPED, REPLIES_PUSHED, REPLIES_POPPED = 0, 64, 128, 192
REQUESTS_AT = 4096
REPLIES_AT = REQUESTS_AT + RING_ENTRIES * 24
PAGES_AT = REPLIES_AT + RING_ENTRIES * 24
RING_BYTES = PAGES_AT + RING_PAGES * PAGE_BYTES


class MessageType(IntEnum):
    """Of a socket message."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    SEGMENT = 4
    RETIRED = 5
    FORGOTTEN = 6
    EMPTYING = 7
    LEFT = 8


class RequestOp(IntEnum):
    """Of a request in the ring."""

    SIGHT = 1
    PROVIDE = 2
    RELEASE = 3
    ACCOUNT = 4


class ReplyOp(IntEnum):
    """Of a reply in the ring."""

    NEW = 1
    PROVIDE = 2
    MATCH = 3
    HINT = 4
    ACCOUNT = 5


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the reply ring."""

    value: int
    frame: int
    slot: int
    op: ReplyOp

    @property
    def segment(self) -> int:
        """The number of the segment that holds the slot."""
        return self.slot // SEGMENT_SLOTS


def hello(name: str = "test", oldest: int = 1, newest: int = 1, features: int = 0) -> bytes:
    """A well-formed HELLO."""
    text = name.encode()[: NAME_BYTES - 1]
    return HELLO.pack(MAGIC, MessageType.HELLO, HELLO.size, oldest, newest, features, text)


def forgotten(segment: int) -> bytes:
    """A well-formed FORGOTTEN."""
    return SEGMENT.pack(MAGIC, MessageType.FORGOTTEN, SEGMENT.size, segment, 0)


def left(session: int) -> bytes:
    """A well-formed LEFT."""
    return SEGMENT.pack(MAGIC, MessageType.LEFT, SEGMENT.size, session, 0)


def _load_xxhash() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits_withSecret.restype = ctypes.c_uint64
    library.XXH3_64bits_withSecret.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library


_XXHASH = _load_xxhash()


def build_has_weak_hash(build: Path) -> bool:
    """Whether that build directory was set up with -Dweak_hash=true."""
    options = json.loads((build / "meson-info" / "intro-buildoptions.json").read_text())
    return any(o["name"] == "weak_hash" and o["value"] for o in options)


def fingerprint(secret: bytes, page: bytes, *, weak: bool) -> int:
    """The page hash that clients and broker agree on."""
    value = int(_XXHASH.XXH3_64bits_withSecret(page, len(page), secret, len(secret)))
    return value % 255 + 1 if weak else value or 1
