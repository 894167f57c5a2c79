# SPDX-License-Identifier: GPL-2.0-or-later
"""A fake QEMU monitor: greets and answers as QEMU does, with whatever objects a test gives it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}

NO_UUID = "00000000-0000-0000-0000-000000000000"


def error(kind: str, text: str) -> dict[str, Any]:
    return {"error": {"class": kind, "desc": text}}


class FakeQmp:
    """objects maps a name under /objects to its properties, or what returns them; `sets` notes each qom-set."""

    def __init__(self, name: str, objects: dict[str, dict[str, Any]], uuid: str = NO_UUID) -> None:
        self.name = name
        self.uuid = uuid
        self.objects = objects
        self.sets: list[tuple[str, Any]] = []

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "qmp_capabilities":
            return {"return": {}}
        if command == "query-name":
            return {"return": {"name": self.name} if self.name else {}}
        if command == "query-uuid":
            return {"return": {"UUID": self.uuid}}
        if command == "qom-list":
            listed = [{"name": name, "type": "child<container>"} for name in self.objects]
            return {"return": [{"name": "type", "type": "string"}, *listed]}
        if command in {"qom-get", "qom-set"}:
            found = self.objects.get(arguments["path"].removeprefix("/objects/"))
            if found is None:
                return error("DeviceNotFound", f"Device '{arguments['path']}' not found")
            if command == "qom-get":
                value = found[arguments["property"]]
                return {"return": value() if callable(value) else value}
            if arguments["property"] == "mode" and arguments["value"] not in found["modes"]:
                return error("GenericError", "mode: one of off, zero, content")
            self.sets.append((arguments["property"], arguments["value"]))
            return {"return": {}}
        return error("CommandNotFound", f"The command {command} has not been found")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(json.dumps(GREETING).encode() + b"\r\n")
            text = ""
            while piece := await reader.read(65536):
                # Requests need not end with a newline; QEMU answers as soon as one is complete.
                text = (text + piece.decode()).lstrip()
                while text:
                    try:
                        request, end = json.JSONDecoder().raw_decode(text)
                    except json.JSONDecodeError:
                        break
                    text = text[end:].lstrip()
                    reply = self.answer(request["execute"], request.get("arguments", {}))
                    if "id" in request:
                        reply["id"] = request["id"]
                    writer.write(json.dumps(reply).encode() + b"\r\n")
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def fake_qmp(
    socket: Path, name: str, objects: dict[str, dict[str, Any]], uuid: str = NO_UUID
) -> AsyncIterator[FakeQmp]:
    """Serve at socket until the block is left."""
    fake = FakeQmp(name, objects, uuid)
    server = await asyncio.start_unix_server(fake.serve, str(socket))
    try:
        yield fake
    finally:
        server.close()
