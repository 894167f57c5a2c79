# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things are on a host, unless somebody says otherwise. Imports nothing: reading verbs have to be quick."""

from pathlib import Path

LIBVIRT_URI = "qemu:///system"
CONFIG = Path("/etc/memshare/memshare.toml")
CONTROL_SOCKET = Path("/run/memshare/control.sock")
DAEMON_SOCKET = Path("/run/memshare/daemon.sock")
QMP_DIR = Path("/run/memshare/qmp")
