# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors that people see.

MemshareError           1  something failed; the message says what
|-- UsageError          2  the request itself is wrong
|-- UnreachableError    3  a broker, a guest or a folder of sockets does not answer
|-- NoSuchDomainError   4  no guest of that name
|-- HostError           5  this host cannot do it
`-- MeasurementError    1  a figure cannot be had, or what was measured contradicts itself

The number is the exit code. A message is one line without capital or full stop; the hint, where
there is one, says what to do about it.
"""

from typing import ClassVar


class MemshareError(Exception):
    """What a command reports as `error: ...` and, with a hint, `hint: ...`."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        """Keep the line and what to do about it."""
        super().__init__(message)
        self.hint = hint


class UsageError(MemshareError):
    """The request itself is wrong."""

    exit_code = 2


class UnreachableError(MemshareError):
    """Nobody answers at a socket."""

    exit_code = 3


class NoSuchDomainError(MemshareError):
    """No guest of that name."""

    exit_code = 4


class HostError(MemshareError):
    """This host cannot do it."""

    exit_code = 5


class MeasurementError(MemshareError):
    """A figure cannot be had."""
