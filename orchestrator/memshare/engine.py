# SPDX-License-Identifier: GPL-2.0-or-later
"""Share this process's own memory: the engine that also runs inside QEMU, for Python.

``Engine`` registers private anonymous memory (an ``mmap.mmap(-1, n)`` made with ``MAP_PRIVATE``, or any
writable buffer that lies on whole pages), and replaces pages equal to others of the same group by
copy-on-write mappings of one copy. Without a socket it keeps a table of its own and shares within
the registered memory; with one it shares with all clients of that broker's group.

Addresses stay valid throughout. A buffer must stay alive, and must not be resized, while it is
registered: the engine holds a reference to it.
"""

import errno
import mmap
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from memshare._core import ffi, lib

Buffer = mmap.mmap | memoryview | bytearray
Mode = Literal["off", "zero", "content"]

#: Scan as fast as the CPU limit allows.
UNLIMITED: int = lib.MSH_RATE_UNLIMITED

_MODES: Mapping[str, int] = {"off": 0, "zero": 1, "content": 2}


class EngineError(OSError):
    """An engine refused or failed; ``errno`` and the text say what and where."""


def _check(result: int, error: Any) -> None:
    if result < 0:
        text = ffi.string(error.text).decode(errors="replace")
        raise EngineError(-result, text or os.strerror(-result))


def _mode(name: str) -> int:
    try:
        return _MODES[name]
    except KeyError:
        message = f"mode {name!r} is none of off, zero, content"
        raise EngineError(errno.EINVAL, message) from None


class Engine:
    """One engine. ``scan_once`` works on the calling thread; ``start`` lets two threads do it.

    ``nothing_pinned`` promises that no I/O is ever in flight into registered memory (no O_DIRECT, no
    io_uring buffers), which lets ``detach`` give back plain memory rather than private copies inside
    mappings of the store. ``eager`` merges again at once what was written soon after it was merged, for much
    more CPU. ``patience_ns`` is how long ``register``, ``unregister`` and ``hold`` wait
    for an engine that is at work, before they fail; 0 is for ever.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        group: str = "default",
        name: str | None = None,
        mode: Mode = "content",
        scan_rate: int = UNLIMITED,
        cpu_limit: int = 0,
        nothing_pinned: bool = False,
        eager: bool = False,
        patience_ns: int = 0,
    ) -> None:
        """Make an engine; raises EngineError when the host cannot share or an argument is wrong."""
        keep = [
            ffi.new("char[]", os.fsencode(text)) if text is not None else ffi.NULL
            for text in (socket, group, name)
        ]
        config = ffi.new(
            "MshConfig *",
            {
                "socket_path": keep[0],
                "group": keep[1],
                "guest_name": keep[2],
                "mode": _mode(mode),
                "scan_rate_pages": scan_rate,
                "cpu_limit_percent": cpu_limit,
                "nothing_pinned": ffi.addressof(lib, "never_pinned")
                if nothing_pinned
                else ffi.NULL,
                "is_eager": eager,
                "patience_ns": patience_ns,
            },
        )
        holder, error = ffi.new("MshEngine **"), ffi.new("MshError *")
        _check(lib.msh_engine_new(config, holder, error), error)
        self._engine: Any = holder[0]
        self._buffers: dict[int, Any] = {}

    def register(self, buffer: Buffer) -> None:
        """Let the engine share the pages of a writable buffer that starts and ends on whole pages."""
        view = ffi.from_buffer(buffer, require_writable=True)
        address = int(ffi.cast("uintptr_t", view))
        self.register_range(address, len(view))
        self._buffers[address] = view

    def register_range(self, address: int, length_bytes: int) -> None:
        """Register memory that the caller keeps alive."""
        error = ffi.new("MshError *")
        pointer = ffi.cast("void *", address)
        _check(lib.msh_engine_register(self._open(), pointer, length_bytes, error), error)

    def unregister(self, buffer: Buffer) -> None:
        """Make the buffer's pages private again and forget it."""
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
        error = ffi.new("MshError *")
        _check(lib.msh_engine_unregister(self._open(), ffi.cast("void *", address), error), error)
        self._buffers.pop(address, None)

    def set(
        self,
        *,
        mode: Mode | None = None,
        scan_rate: int | None = None,
        cpu_limit: int | None = None,
    ) -> None:
        """Steer: ``mode`` off, zero or content; ``scan_rate`` pages/s; ``cpu_limit`` percent."""
        engine = self._open()
        none = ffi.new("MshError *")
        if mode is not None:
            _check(lib.msh_engine_set_mode(engine, _mode(mode)), none)
        if scan_rate is not None:
            _check(lib.msh_engine_set_scan_rate(engine, scan_rate), none)
        if cpu_limit is not None:
            _check(lib.msh_engine_set_cpu_limit(engine, cpu_limit), none)

    def set_ceiling(self, mode: Mode, reason: str) -> None:
        """Limit the mode in force, whatever is set, and say why in ``stats()['refusal']``."""
        result = lib.msh_engine_set_ceiling(self._open(), _mode(mode), reason.encode())
        _check(result, ffi.new("MshError *"))

    def hold(self, *, hold: bool) -> None:
        """While held, nothing is replaced and nothing is registered with userfaultfd."""
        _check(lib.msh_engine_hold(self._open(), hold), ffi.new("MshError *"))

    def start(self) -> None:
        """Let two background threads scan and merge, at the scan rate."""
        error = ffi.new("MshError *")
        _check(lib.msh_engine_start(self._open(), error), error)

    def scan_once(self) -> None:
        """Make one complete pass now, unpaced: visit, ask, merge what matched."""
        error = ffi.new("MshError *")
        _check(lib.msh_engine_scan_once(self._open(), error), error)

    def stats(self) -> dict[str, Any]:
        """Return the engine's numbers, named as in the QOM property ``stats``; never waits."""
        stats = ffi.new("MshStats *")
        lib.msh_engine_stats(self._open(), stats)
        values: dict[str, Any] = {}
        for name, field in ffi.typeof(stats[0]).fields:
            value = getattr(stats, name)
            if field.type.kind == "array":
                is_text = field.type.item.cname == "char"
                value = ffi.string(value).decode(errors="replace") if is_text else list(value)
            values[name] = value
        values["mode"] = ffi.string(lib.msh_mode_name(stats.mode)).decode()
        values["state"] = ffi.string(lib.msh_state_name(stats.state)).decode()
        return values

    def detach(self) -> None:
        """Make all pages private again and return all slots; the memory stays registered."""
        error = ffi.new("MshError *")
        _check(lib.msh_engine_detach(self._open(), error), error)

    def release(self, budget_ns: int = UNLIMITED) -> bool:
        """Make what is mapped from the store plain memory; False when all was gone through.

        The caller promises that no I/O into registered memory is in flight until this returns.
        """
        return bool(lib.msh_engine_release(self._open(), budget_ns))

    def close(self) -> None:
        """Detach and free. Further calls fail; closing twice does nothing."""
        if self._engine is not None:
            lib.msh_engine_free(self._engine)
            self._engine = None
            self._buffers.clear()

    def _open(self) -> Any:
        if self._engine is None:
            raise EngineError(errno.EBADF, "the engine is closed")
        return self._engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
