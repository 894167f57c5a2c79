# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding guests: each once, each by a name of its own, whatever they say of themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fakes.fake_qmp import FakeQmp, fake_qmp
from memshare.clients.qmp import open_monitor
from memshare.clients.sources import Found, SocketFolder, printable, sources_of, union
from memshare.config import Config
from memshare.errors import MemshareError
from memshare.model import Domain
from samples import stats


async def names_in(folder: Path, **told: str) -> dict[str, str]:
    """Return how guests that tell these names are called, by their sockets."""
    async with AsyncExitStack() as stack:
        for socket, name in told.items():
            await stack.enter_async_context(fake_qmp(folder / f"{socket}.sock", name, {}))
        found = await SocketFolder(folder).guests()
    return {Path(guest.process.rpartition(":")[0]).stem: guest.domain.name for guest in found}


async def test_guests_that_tell_one_name_are_all_found(tmp_path: Path) -> None:
    assert await names_in(tmp_path, one="vm", two="vm", three="other") == {
        "one": "vm",
        "two": "vm@two.sock",
        "three": "other",
    }


async def test_nobody_takes_the_place_of_a_guest_whose_socket_has_its_name(tmp_path: Path) -> None:
    assert await names_in(tmp_path, a="web", web="web") == {"web": "web", "a": "web@a.sock"}


async def test_a_name_is_one_line_that_can_be_encoded(tmp_path: Path) -> None:
    names = await names_in(tmp_path, a="x\nlevel=error \x1b[2J", b="\udcff\ud800\0")
    assert names == {"a": "x\\nlevel=error \\x1b[2J", "b": "\\udcff\\ud800\\x00"}


def test_what_can_be_seen_stays_as_it_is() -> None:
    assert printable("wéb 1 漢") == "wéb 1 漢"


def found(name: str, source: str, uuid: str = "") -> Found:
    return Found(
        domain=Domain(name=name, source=source, uuid=uuid),
        process=source,
        monitor=lambda: open_monitor(Path(source)),
    )


def test_a_guest_of_libvirt_with_a_socket_too_is_one_guest_and_others_are_not() -> None:
    lists = [[found("a", "qemu:///system", "u")], [found("a", "/x"), found("b", "/x")]]
    lists.append([found("b", "/y")])
    assert [(guest.domain.name, guest.process) for guest in union(lists)] == [
        ("a", "qemu:///system"),
        ("b", "/x"),
        ("b@/y", "/y"),
    ]


def test_a_guest_that_only_has_the_name_of_one_of_libvirts_is_another_guest() -> None:
    lists = [
        [found("a", "qemu:///system", "u")],
        [found("a", "/x", "v"), found("other", "/x", "u")],
    ]
    assert [guest.domain.name for guest in union(lists)] == ["a", "a@/x"]


def test_a_place_that_is_named_twice_is_one_source() -> None:
    config = Config(connect=2 * ("test:///default",), qmp_dirs=("/x", "/x/"))
    assert [source.name for source in sources_of(config)] == ["test:///default", "/x"]


class Nonsense(FakeQmp):
    """Says what it was given, instead of the answer to its first question."""

    def __init__(self, said: bytes) -> None:
        super().__init__("liar", {})
        self.said = said

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = 0

        class Writer:
            def write(_, data: bytes) -> None:
                nonlocal asked
                asked += 1
                writer.write(data if asked <= 2 else self.said)

            def __getattr__(_, name: str) -> object:
                return getattr(writer, name)

        await super().serve(reader, Writer())  # type: ignore[arg-type]


@asynccontextmanager
async def liar(socket: Path, said: bytes) -> AsyncIterator[None]:
    server = await asyncio.start_unix_server(Nonsense(said).serve, str(socket))
    async with server:
        yield


@pytest.mark.parametrize(
    "said",
    [
        b"x" * (11 << 20),
        b"[" * 200_000 + b"\n",
        b'{"return": ' + b"9" * 5000 + b"}\n",
        b'{"return": {}, "id": [1]}\n',
        b"\xff\xfe\n",
    ],
    ids=["endless", "deep", "digits", "id", "bytes"],
)
async def test_a_monitor_that_talks_nonsense_is_one_error_of_ours(
    tmp_path: Path, said: bytes
) -> None:
    async with liar(tmp_path / "s", said):
        with pytest.raises(MemshareError):
            async with open_monitor(tmp_path / "s", 60) as monitor:
                await monitor.stats()
        assert len(await SocketFolder(tmp_path).guests()) == 1


@pytest.mark.parametrize("value", [-1, 1 << 64, 10**400])
async def test_figures_that_no_engine_has_are_refused(tmp_path: Path, value: int) -> None:
    objects = {"memshare0": {"stats": stats(ram_bytes=value)}}
    async with fake_qmp(tmp_path / "s", "a", objects), open_monitor(tmp_path / "s") as monitor:
        with pytest.raises(MemshareError, match="ram_bytes is not a number of 64 bits"):
            await monitor.stats()


@pytest.mark.parametrize(
    ("value", "match"),
    [([0, 10**400], "is not a number of 64 bits"), ([-1], "of 64 bits"), ([0] * 65, "65 buckets")],
)
async def test_a_histogram_that_no_engine_has_is_refused(
    tmp_path: Path, value: list[int], match: str
) -> None:
    objects = {"memshare0": {"stats": stats(window_time_ns=value)}}
    async with fake_qmp(tmp_path / "s", "a", objects), open_monitor(tmp_path / "s") as monitor:
        with pytest.raises(MemshareError, match=match):
            await monitor.stats()
