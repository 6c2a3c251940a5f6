"""How many may be connected, in all and per address. Only counts: who goes when it is full is `net.accept`'s rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol


class Seated(Protocol):
    """A connection; its seat is "" or None where it is not counted by address."""

    seat: str | None

    def give_way(self) -> bool: ...


class Lingering:
    """By address, those that have their last answer: the next connection of that address takes the place of one."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Seated, None]] = {}

    def add(self, one: Seated) -> None:
        if one.seat:
            self._of.setdefault(one.seat, {})[one] = None

    def discard(self, one: Seated) -> None:
        address = one.seat or ""
        mine = self._of.get(address)
        if mine is not None:
            mine.pop(one, None)
            if not mine:
                del self._of[address]

    def make_room(self, address: str, most: int) -> bool:
        """Whether one of that address goes, of so many that are asked."""
        return any(one.give_way() for one in [*islice(self._of.get(address, ()), most)])


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
