"""How large a database is, and how it is made smaller, page by page."""

from __future__ import annotations

from engadi_gateway.store.database import Connection, pragma


def file_bytes(connection: Connection) -> int:
    """The file without its WAL."""
    return int(pragma(connection, "page_count") * pragma(connection, "page_size"))


def free_share(connection: Connection) -> float:
    """How much of the file is free pages, which are reused before it grows."""
    return float(pragma(connection, "freelist_count") / pragma(connection, "page_count"))


def used_bytes(connection: Connection) -> int:
    """What the file's content takes."""
    return round(file_bytes(connection) * (1 - free_share(connection)))


def shrink(connection: Connection, pages: int) -> int:
    """Give up to `pages` free pages back to the file system; how many."""
    before = int(pragma(connection, "freelist_count"))
    for _ in range(min(pages, before)):
        pragma(connection, "incremental_vacuum(1)")  # sqlite3 takes one step of it, and a step is a page
    return before - int(pragma(connection, "freelist_count"))
