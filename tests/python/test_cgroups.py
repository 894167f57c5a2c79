# SPDX-License-Identifier: GPL-2.0-or-later
"""Which part of a QEMU's cgroup is its guest's own."""

import pytest

from memshare.clients.admission import guests_own
from memshare.errors import MemshareError

SCOPE = "/machine.slice/machine-qemu\\x2d12\\x2dweb\\x2d1.scope"
PLAIN = "/machine/qemu-12-web-1.libvirt-qemu"


@pytest.mark.parametrize("own", [SCOPE, PLAIN, f"/tenants.slice{SCOPE}"])
@pytest.mark.parametrize("below", ["", "/libvirt", "/libvirt/emulator", "/vcpu0"])
def test_threads_are_below_the_guests_own(own: str, below: str) -> None:
    assert guests_own(own + below, 12) == own


@pytest.mark.parametrize("domain_id", [1, 2, 120, -1])
@pytest.mark.parametrize("own", [SCOPE, PLAIN])
def test_I5_another_guests_cgroup_is_not_taken(own: str, domain_id: int) -> None:
    with pytest.raises(MemshareError, match="is not the guest's own"):
        guests_own(own, domain_id)


@pytest.mark.parametrize(
    "cgroup",
    ["/", "/system.slice/libvirtd.service", "/user.slice/user-0.slice/session-3.scope", "/machine"],
)
def test_I5_a_cgroup_of_several_is_not_taken(cgroup: str) -> None:
    with pytest.raises(MemshareError, match="is not the guest's own"):
        guests_own(cgroup, 12)
