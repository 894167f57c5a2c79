# SPDX-License-Identifier: GPL-2.0-or-later
"""The units of `packaging/systemd` in a systemd: who starts whom, what is taken away, what a death costs."""

from collections.abc import Iterator

import pytest
from tests.lib.systemd import Systemd

pytestmark = pytest.mark.slow

BROKER, DAEMON, CONTROL = "memshared.service", "memshare.service", "memshared.socket"


@pytest.fixture(scope="module")
def host() -> Iterator[Systemd]:
    """A host with memshare, whose guests would be in a folder of QMP sockets."""
    with Systemd('qmp-dirs = ["/run/memshare/qmp"]\n') as booted:
        yield booted


def kill(host: Systemd, unit: str) -> None:
    """End it as nobody should; returns when systemd has started it again."""
    restarts = int(host.show(unit, "NRestarts"))
    host.systemctl("kill", "--signal=SIGKILL", "--kill-whom=main", unit)
    host.wait_for(unit, "NRestarts", str(restarts + 1))
    host.wait_for(unit, "ActiveState", "active")


def test_the_broker_is_started_by_who_asks_it(host: Systemd) -> None:
    host.systemctl("start", CONTROL)
    assert host.show(BROKER, "ActiveState") == "inactive"
    assert host.ask_broker("group-add", group="red") == {"ok": True}
    host.wait_for(BROKER, "ActiveState", "active")
    status = host.run("cat", f"/proc/{host.show(BROKER, 'MainPID')}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    assert host.run("stat", "--format=%U %G %a", "/run/memshare/red.sock") == "root kvm 660"
    journal = host.journal(BROKER)
    assert "sandbox=on" in journal
    for complaint in ("device_missing", "libcap-ng", "error "):
        assert complaint not in journal


def test_the_broker_is_started_again_and_its_socket_goes_on(host: Systemd) -> None:
    kill(host, BROKER)
    pid = int(host.show(BROKER, "MainPID"))
    assert host.ask_broker("status")["pid"] == pid
    host.systemctl("stop", BROKER)
    assert host.ask_broker("status")["pid"] != pid


def test_the_daemon_is_ready_reloads_and_is_started_again(host: Systemd) -> None:
    host.systemctl("start", DAEMON)  # returns at READY=1
    host.systemctl("reload", DAEMON)
    host.wait_for(DAEMON, "ActiveState", "active")
    kill(host, DAEMON)
    host.run("test", "-S", "/run/memshare/daemon.sock")
    host.run("test", "-d", "/var/lib/memshare")


def test_a_daemon_that_hangs_is_started_again(host: Systemd) -> None:
    host.systemctl("start", DAEMON)
    restarts = int(host.show(DAEMON, "NRestarts"))
    host.systemctl("kill", "--signal=SIGSTOP", "--kill-whom=main", DAEMON)
    host.wait_for(DAEMON, "NRestarts", str(restarts + 1))
    host.wait_for(DAEMON, "ActiveState", "active")
    assert "Watchdog timeout" in host.journal(DAEMON)


def test_what_stops_leaves_what_is_others(host: Systemd) -> None:
    host.systemctl("start", CONTROL, BROKER, DAEMON)
    host.systemctl("stop", DAEMON)
    host.run("test", "-S", "/run/memshare/control.sock")
    assert "daemon.sock" not in host.run("ls", "/run/memshare").split()
    host.ask_broker("group-add", group="blue")
    host.systemctl("stop", CONTROL, BROKER)
    left = host.run("ls", "/run/memshare").split()
    assert ("qmp" in left, "blue.sock" in left) == (True, False)
    host.systemctl("start", CONTROL)
    assert host.ask_broker("status")["ok"]
