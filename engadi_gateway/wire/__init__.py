"""Decisions about bytes: what a request, a reply, a header line and a target mean. The same rule as `pipeline`."""
