"""The process and its commands: serve, look at what lies there, ask whether a gateway is ready."""
