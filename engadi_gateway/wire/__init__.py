"""Decisions about bytes: what a request, a reply, a header line and a target mean. The same rule as `pipeline`.

what comes           request (the door to h11)  target  headers  chunked  text (of both directions)
what goes on         forwarded (the head upstream)  response (a reply's head, read and written)
what we say          problem (refusals, and replies of our own)
"""
