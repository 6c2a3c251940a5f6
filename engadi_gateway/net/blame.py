"""Whose doing it was that an exchange ended: a client that keeps an upstream waiting is not the upstream's failure."""

from __future__ import annotations

from engadi_gateway.errors import Reason

#: A reason, and what the row says of it.
Failure = tuple[Reason, str]
#: Whom a client has kept waiting for longer than that may close when it likes, and that is no failure of the service.
_PATIENCE_S = 1.0


def of_a_lost_connection(failure: Failure, not_sent_s: float, not_read_s: float) -> Failure:
    """An upstream that was kept waiting by the client, and then closed, has had enough of the client.

    Another attempt would wait for the same client, so there is none.

    Args:
        not_sent_s: for so long the client has sent nothing of its body, of which more was to come.
        not_read_s: for so long it has not read of the reply.
    """
    reason, detail = failure
    if not_sent_s > _PATIENCE_S:
        return Reason.CLIENT_TIMEOUT, f"{detail}, after {not_sent_s:.1f} s of silence within the request's body"
    if not_read_s > _PATIENCE_S:
        return Reason.CLIENT_STALLED, f"{detail}, after the client had not read for {not_read_s:.1f} s"
    return reason, detail


def of_no_reply(timeout_s: float, before: Failure | None, *, is_asked: bool, is_sent: bool, is_queued: bool) -> Failure:
    """What took long, where no reply has begun in time.

    Args:
        before: how the last attempt failed, where one has.
        is_asked: there is a connection to the upstream.
        is_sent: the request is complete.
        is_queued: nothing is being dialled for it; others have the connections, or it waits to try again.
    """
    within = f"within {timeout_s:g} s" if is_sent else "in time"
    if is_asked:
        return Reason.UPSTREAM_TIMEOUT, f"no reply {within}" if is_sent else "it does not read"
    if before is not None and is_queued:
        return Reason.UPSTREAM_TIMEOUT, f"{before[1]}; no other attempt {within}"
    if is_queued:
        return Reason.OVERLOADED, f"no free connection {within}"
    return Reason.CONNECT_TIMEOUT, f"no connection {within}"
