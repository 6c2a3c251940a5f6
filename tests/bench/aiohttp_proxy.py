"""A streaming proxy on aiohttp, as one would write it by hand: no duties at all."""

from __future__ import annotations

import sys
from typing import Any

from aiohttp import ClientSession, TCPConnector, web

_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "upgrade", "te", "proxy-connection"}


def application(upstream: int) -> Any:
    app = web.Application()

    async def session(app: Any) -> Any:
        connector = TCPConnector(limit=100)
        app["session"] = ClientSession(f"http://127.0.0.1:{upstream}", connector=connector, auto_decompress=False)
        yield
        await app["session"].close()

    async def proxy(request: Any) -> Any:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        headers.append(("X-Forwarded-For", request.remote or ""))
        body = request.content if request.body_exists else None
        async with request.app["session"].request(request.method, request.rel_url, headers=headers, data=body) as reply:
            out = web.StreamResponse(status=reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in _HOP:
                    out.headers.add(name, value)
            await out.prepare(request)
            async for chunk in reply.content.iter_any():
                await out.write(chunk)
            await out.write_eof()
            return out

    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    return app


if __name__ == "__main__":
    web.run_app(application(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
