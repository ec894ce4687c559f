"""A link that loses, damages, repeats and delays packets, and the fingerprint that tells whether both ends agree."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, OrderedDict

import numpy as np

from tatok_edge.stream.state import StreamState

SHARES = {"lost": 0.02, "damaged": 0.01, "repeated": 0.01, "late": 0.02}
"""Share of the packets that suffer each fault."""
LATEST = 4
"""Most packets by which a late one is overtaken."""
REMEMBERED = 64
"""Newest packets whose fingerprints are kept."""


class Link:
    """Carries packets from a sender to a receiver, badly.

    Args:
        seed: Seed of the faults.
        shares: Share of the packets that suffer each fault.
    """

    def __init__(self, seed: int, shares: dict[str, float] = SHARES) -> None:
        self.faults: Counter[str] = Counter(sent=0, **dict.fromkeys(shares, 0))
        """How many packets were sent, and how many suffered each fault."""
        self._rng = random.Random(seed)
        self._shares = shares
        self._waiting: list[tuple[int, bytes]] = []

    def send(self, packet: bytes) -> list[bytes]:
        """Takes a packet, and gives those that arrive now."""
        self.faults["sent"] += 1
        chance, arriving, delay = self._rng.random(), [packet], 0
        for fault, share in self._shares.items():
            chance -= share
            if chance < 0:
                self.faults[fault] += 1
                if fault == "lost":
                    arriving = []
                elif fault == "damaged":
                    arriving = [self._damage(packet)]
                elif fault == "repeated":
                    arriving = [packet, packet]
                else:
                    delay = self._rng.randint(1, LATEST)
                break
        due = [(wait - 1, waiting) for wait, waiting in self._waiting]
        self._waiting = [entry for entry in due if entry[0] > 0]
        if delay:
            self._waiting.append((delay + 1, packet))
            arriving = []
        return arriving + [waiting for wait, waiting in due if wait <= 0]

    def _damage(self, packet: bytes) -> bytes:
        changed = bytearray(packet)
        for _ in range(self._rng.randint(1, 4)):
            changed[self._rng.randrange(len(changed))] ^= self._rng.randint(1, 255)
        return bytes(changed)


class Agreement:
    """Compares what a receiver holds with what the sender held after the same packet, bit for bit."""

    def __init__(self) -> None:
        self.compared = 0
        """Pictures that were compared."""
        self.different_pictures = 0
        """Pictures that the receiver called complete, and that were not the sender's."""
        self.different_states = 0
        """The same for all that both ends hold: tokens, context, means, vectors and the picture."""
        self._sent: OrderedDict[tuple[int, int], tuple[bytes, bytes]] = OrderedDict()

    def note(self, state: StreamState) -> None:
        """Remembers what the sender holds after a packet."""
        self._sent[state.index, state.crc] = fingerprints(state)
        if len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)

    def compare(self, state: StreamState) -> None:
        """Compares what the receiver holds; call it where the receiver says that its picture is complete."""
        sent = self._sent.get((state.index, state.crc))
        picture, whole = fingerprints(state)
        self.compared += 1
        self.different_pictures += sent is None or sent[0] != picture
        self.different_states += sent is None or sent[1] != whole


def fingerprints(state: StreamState) -> tuple[bytes, bytes]:
    """A hash of the shown picture, and one of all that an end holds."""
    picture = hashlib.blake2b(np.ascontiguousarray(state.picture), digest_size=16)
    held, maps = state.held, state.maps
    whole = picture.copy()
    whole.update(repr((state.index, state.crc, state.width, state.height)).encode())
    for values in (held.global_ids, held.depths, held.ids, *maps.named().values(), state.moved, state.offsets):
        whole.update(np.ascontiguousarray(values))
    return picture.digest(), whole.digest()
