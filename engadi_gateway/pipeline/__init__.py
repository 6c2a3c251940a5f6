"""Decisions about a request: pure functions of the exchange, the snapshot, the state handed in, and `now`.

No socket, clock, file, thread or `async` in this room.
"""
