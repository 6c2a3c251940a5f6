"""All peers, by name, this gateway first."""

from __future__ import annotations

from tests.bench.peers import Peer, debian, engadi, handwritten, pypi

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*engadi.PEERS, *debian.PEERS, *pypi.PEERS, *handwritten.PEERS)}
