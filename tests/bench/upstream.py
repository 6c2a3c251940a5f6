"""The upstream of the benchmark: 1 KiB that names the request it answers. As little work as Python can do."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

_LENGTH = 1024
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % _LENGTH
_ID = re.compile(rb"id=([0-9a-z]+)")


class Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        *heads, self.buffer = (self.buffer + data).split(b"\r\n\r\n")
        for head in heads:
            match = _ID.search(head)
            mark = match[1] if match else b"-"
            self.transport.write(_HEAD + mark.ljust(_LENGTH, b"."))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", int(sys.argv[1]), backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
