# SPDX-License-Identifier: GPL-2.0-or-later
"""The operator's hook: the guard's last step, when neither scanning nor balloons have brought enough."""

import asyncio
import contextlib
import os
import signal

import structlog

from memshare.policy import RunHook

log = structlog.get_logger()


async def run_hook(path: str, action: RunHook, timeout_seconds: float) -> None:
    """Run it to its end; what goes wrong is logged and costs nobody else anything."""
    environment = {
        **os.environ,
        "MEMSHARE_MISSING_BYTES": str(action.missing_bytes),
        "MEMSHARE_REASON": action.reason,
    }
    try:
        process = await asyncio.create_subprocess_exec(
            path, stdin=asyncio.subprocess.DEVNULL, env=environment, start_new_session=True
        )
    except OSError as error:
        log.error("hook_failed", hook=path, reason=error.strerror)
        return
    try:
        async with asyncio.timeout(timeout_seconds):
            code = await process.wait()
    except TimeoutError:
        log.error("hook_failed", hook=path, reason=f"not done after {timeout_seconds:.0f} s")
    else:
        (log.info if code == 0 else log.error)("hook_ended", hook=path, exit_code=code)
    finally:
        if process.returncode is None:
            # A script waits for what it has started: all of it has to end.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
