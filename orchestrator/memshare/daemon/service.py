# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a service: one at a time, reload by SIGHUP, readiness and watchdog for systemd.

All parts run in one TaskGroup: one that dies takes the daemon down, and systemd starts it anew. A daemon that goes
on without one of its parts would be worse than none.
"""

import asyncio
import fcntl
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import sdnotify
import structlog

from memshare.clients.host import pressure_alarm, pressure_file
from memshare.clients.sources import Libvirt, sources_of
from memshare.config import Config, load
from memshare.daemon.admission import Admission
from memshare.daemon.inventory import Inventory
from memshare.daemon.ksm import KsmTuner
from memshare.daemon.loop import Loop
from memshare.daemon.socket import Answerer, serving
from memshare.daemon.state import State
from memshare.daemon.state import load as load_state
from memshare.errors import HostError, MemshareError, UsageError
from memshare.metrics.endpoint import serve
from memshare.policy import psi_triggers

log = structlog.get_logger()

LOCK = "daemon.lock"


class _Stop(Exception):
    """SIGTERM or SIGINT came."""


class _Reload(Exception):
    """SIGHUP came, and the configuration has been read."""


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Be the only daemon of this host; raises HostError when another one runs."""
    path = state_dir / LOCK
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise MemshareError(
            f"{path}: {(error.strerror or str(error)).lower()}", "the daemon runs as root"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(f"{path}: another memshare daemon runs here") from None
        yield


class Service:
    """Runs until it is told to stop."""

    def __init__(self, path: Path, config: Config) -> None:
        """path is read again at a reload."""
        self._path = path
        self._config = config
        self._notifier = sdnotify.SystemdNotifier()
        self._in_force: Config | None = None
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self) -> None:
        """Serve; returns when a signal says stop. MemshareError."""
        # Once and not at each reload: what comes during a reload is heeded after it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._signals.put_nowait, number)
        state_dir = Path(self._config.state_dir)
        with alone(state_dir):
            state = load_state(state_dir)
            goes_on = True
            while goes_on:
                try:
                    await self._serve(state)
                except* _Stop:
                    goes_on = False
                    log.info("daemon_stopped")
                except* _Reload:
                    log.info("daemon_reloaded", config=str(self._path))
                except* MemshareError as errors:
                    if self._in_force is None or self._config is self._in_force:
                        raise
                    # Well-formed, and impossible: a port or a socket that cannot be had.
                    log.error("reload_refused", reason=str(errors.exceptions[0]))
                    self._config = self._in_force

    async def _serve(self, state: State) -> None:
        """Run all parts with one configuration, until a signal."""
        config = self._config
        sources = sources_of(config)
        inventory = Inventory(sources)
        admission = None
        if config.broker:
            announces = any(isinstance(source, Libvirt) for source in sources)
            admission = Admission(Path(config.broker), inventory, announces=announces)
        tuner = KsmTuner(config) if config.ksm.enabled else None
        loop = Loop(config, inventory, admission, tuner, state, self._looked)
        async with AsyncExitStack() as stack:
            for source in sources:
                stack.push_async_callback(source.close)
            if tuner is not None:
                stack.push_async_callback(tuner.close)
            else:
                await KsmTuner(config).clean_up()
            answerer = Answerer(config, state, lambda: loop.view)
            await stack.enter_async_context(serving(Path(config.socket), answerer))
            self._arm(stack, config, loop)
            if config.metrics.port:
                server = serve(config.metrics.address, config.metrics.port, lambda: loop.view)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
            log.info("daemon_started", sources=" ".join(source.name for source in sources))
            self._in_force = config
            async with asyncio.TaskGroup() as group:
                group.create_task(self._heed_signals())
                group.create_task(inventory.run())
                group.create_task(loop.run())
                if admission is not None:
                    group.create_task(admission.run())
                if tuner is not None:
                    group.create_task(tuner.run(inventory, lambda: loop.view))

    def _arm(self, stack: AsyncExitStack, config: Config, loop: Loop) -> None:
        """Be woken by the kernel when tasks wait for memory; where that cannot be, headroom has to do."""
        path = pressure_file(Path(config.cgroup) if config.cgroup else None)
        try:
            stack.enter_context(pressure_alarm(path, psi_triggers(config.policy), loop.wake))
        except HostError as error:
            log.warning("pressure_alarm_missing", reason=str(error))

    def _looked(self) -> None:
        """Tell systemd that the loop goes round. READY=1 again and again does no harm."""
        self._notifier.notify("READY=1\nWATCHDOG=1")

    async def _heed_signals(self) -> None:
        """Raise what a signal means; a configuration that is wrong is told, and the old one stays."""
        while True:
            if await self._signals.get() != signal.SIGHUP:
                self._notifier.notify("STOPPING=1")
                raise _Stop
            try:
                config = load(self._path)
                sources_of(config)
                if config.state_dir != self._config.state_dir:
                    raise UsageError(f"{self._path}: state-dir cannot change while running")
            except MemshareError as error:
                log.error("reload_refused", reason=str(error))
                continue
            self._config = config
            self._notifier.notify("RELOADING=1")
            raise _Reload
