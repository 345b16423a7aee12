"""A frame arrives at most once, in order for each sender and target, whole or not at all (``reliability.md`` 8).

Hypothesis plays senders, slow and leaving receivers against a model that is no more than lists of numbers. What is
told of a history that fails is the history itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from hypha.config import Limits
from hypha.wire.dialect import LEGACY_JAVASCRIPT
from tests.broker.memory import HEAD, Peer, Scene, read_message

NAMES = ("a", "b", "c")
LIMITS = Limits(outbox_bytes=4000, outbox_reserve_bytes=500, inflight_per_peer=3)


@dataclass(eq=False)
class Party:
    """A client of the play. *accepted*: the numbers that the router took for it, by the sender's generation."""

    peer: Peer
    accepted: dict[int, list[int]] = field(default_factory=dict)
    #: Events that it was to hear, of which it may miss some.
    told: dict[int, list[int]] = field(default_factory=dict)
    #: A frame that waits for room: its sender sends nothing else before.
    waiting: tuple[str, dict[str, Any], bytes, int] | None = None


def whole_messages(written: bytes) -> list[bytes]:
    """The messages that have arrived completely."""
    found, data = [], written
    while len(data) >= HEAD and len(data) >= HEAD + int.from_bytes(data[:HEAD], "big"):
        size = int.from_bytes(data[:HEAD], "big")
        found.append(data[HEAD : HEAD + size])
        data = data[HEAD + size :]
    return found


class Delivery(RuleBasedStateMachine):
    """Three clients of one workspace that number what they send."""

    names = st.sampled_from(NAMES)

    @initialize()
    def begin(self) -> None:
        self.scene = Scene(LIMITS)
        self.number = 0
        self.parties = {name: self.join(name) for name in NAMES}
        self.gone: list[Party] = []

    def join(self, name: str) -> Party:
        party = Party(self.scene.join(f"lab/{name}", takes=100, dialect=LEGACY_JAVASCRIPT))
        party.peer.session.subscriptions.add("event")
        return party

    @rule(
        sender=names,
        receiver=names,
        size=st.sampled_from([0, 1, 300, 1500, 3000]) | st.integers(0, 3000),
        kind=st.sampled_from(["call", "answer", "event"]),
    )
    def send(self, sender: str, receiver: str, size: int, kind: str) -> None:
        if self.parties[sender].waiting is not None:
            return
        self.number += 1
        header: dict[str, Any] = {"to": receiver, "type": "method", "number": self.number}
        if kind == "event":
            header |= {"to": "*", "type": "event"}
        elif kind == "call":
            header |= {"method": "services.svc.f", "session": f"s{self.number}"}
        else:
            header |= {"method": "s1.resolve"}
        self._send(sender, receiver, header, bytes(msgpack.packb({"args": [b"x" * size]})), self.number)

    def _send(self, sender: str, target: str, header: dict[str, Any], body: bytes, number: int) -> None:
        party, peer = self.parties[sender], self.parties[sender].peer
        generation = peer.session.generation
        heard = {name: self.parties[name].peer.session.outbox.missed for name in NAMES}
        blocked = peer.send(header, body)
        party.waiting = None
        if blocked is not None:
            assert blocked is self.parties[target].peer.session
            party.waiting = (target, header, body, number)
        elif header["type"] == "event":
            for other in self.parties.values():
                if other.peer.session.outbox.missed == heard[other.peer.session.address.client]:
                    other.told.setdefault(generation, []).append(number)
        else:
            self.parties[target].accepted.setdefault(generation, []).append(number)

    @rule(sender=names)
    def send_again(self, sender: str) -> None:
        waiting = self.parties[sender].waiting
        if waiting is not None:
            self._send(sender, *waiting)

    @rule(name=names, count=st.integers(1, 5000))
    def read(self, name: str, count: int) -> None:
        transport = self.parties[name].peer.transport
        transport.take(count)
        self.scene.broker.flush()
        transport.run_writers()

    @rule(name=names, clean=st.booleans())
    def leave_and_come_back(self, name: str, clean: bool) -> None:
        party = self.parties[name]
        party.peer.leave(clean=clean)
        self.check(party)
        self.gone.append(party)
        self.parties[name] = self.join(name)
        for other in self.parties.values():  # what waited for the old session is sent to the new one
            if other.waiting is not None and other.waiting[0] == name:
                self._send(other.peer.session.address.client, *other.waiting)

    @rule(name=names)
    def break_off(self, name: str) -> None:
        transport = self.parties[name].peer.transport
        transport.break_off()
        transport.run_writers()
        self.leave_and_come_back(name, clean=False)

    @invariant()
    def what_has_arrived_is_a_beginning_of_what_was_accepted(self) -> None:
        for party in getattr(self, "parties", {}).values():
            self.check(party)

    def check(self, party: Party, *, complete: bool = False) -> None:
        calls: dict[int, list[int]] = {}
        events: dict[int, list[int]] = {}
        for data in whole_messages(bytes(party.peer.transport.written)):
            message = read_message(data)
            if "number" not in message:
                assert message["method"].endswith(".reject")
                continue
            assert message["args"] == [b"x" * len(message["args"][0])]
            kind = events if message["type"] == "event" else calls
            kind.setdefault(self.generation_of(message), []).append(message["number"])
        for arrived, sent in ((calls, party.accepted), (events, party.told)):
            for generation, numbers in arrived.items():
                assert numbers == sent.get(generation, [])[: len(numbers)]
            if complete:
                assert arrived == sent

    def generation_of(self, message: dict[str, Any]) -> int:
        """Which session of that name sent it: numbers are given once."""
        everybody = [*self.parties.values(), *self.gone]
        for party in everybody:
            for generation, numbers in (*party.accepted.items(), *party.told.items()):
                if message["number"] in numbers:
                    return generation
        raise AssertionError(f"{message['number']} arrived and was never accepted")

    def teardown(self) -> None:
        for name in getattr(self, "parties", {}):
            self.parties[name].peer.transport.take(None)
        if not hasattr(self, "parties"):
            return
        for name in NAMES:
            self.send_again(name)
        self.scene.broker.flush()
        for party in self.parties.values():
            party.peer.transport.run_writers()
            party.peer.session.outbox.flush()
            self.check(party, complete=party.waiting is None)


@pytest.mark.parametrize("histories", [25, pytest.param(200, marks=pytest.mark.slow)])
async def test_frames_arrive_at_most_once_in_order_and_whole(histories: int) -> None:
    play = settings(max_examples=histories, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Delivery, settings=play)
