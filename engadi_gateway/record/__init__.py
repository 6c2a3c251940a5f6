"""What is told of requests that are over: rows for the request log, metrics, lines of the access log."""
