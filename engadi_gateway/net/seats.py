"""How many may be connected, in all and per address. Only counts: who goes when it is full is `net.accept`'s rule."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Seats:
    """Seats taken, by address; "" is who is not counted by address (trusted proxies, unix sockets).

    `most` and `most_per_address` change with the settings; 0 per address: no limit.
    """

    most: int = 10000
    most_per_address: int = 0
    ipv6_prefix: int = 64
    taken: int = 0
    by_address: dict[str, int] = field(default_factory=dict)

    def take(self, address: str) -> None:
        self.taken += 1
        if address:
            self.by_address[address] = self.by_address.get(address, 0) + 1

    def leave(self, address: str) -> None:
        self.taken -= 1
        if not address:
            return
        left = self.by_address[address] - 1
        if left:
            self.by_address[address] = left
        else:
            del self.by_address[address]

    def are_spent_by(self, address: str) -> bool:
        """Whether this address has more than its share."""
        return bool(address) and 0 < self.most_per_address < self.by_address[address]

    @property
    def are_short(self) -> bool:
        return self.taken > self.most

    @property
    def are_overfull(self) -> bool:
        """Beyond what is left for those who are only being told that there is no seat."""
        return self.taken > self.most + max(16, self.most // 10)
