"""Sockets: clients' connections, upstreams' connections, and what passes between them."""
