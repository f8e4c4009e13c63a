"""Who is in this peer's group now (layer 5): the control thread's last record, read for the
communicator and its sub-groups. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable

from pccl_py.among import Among, Told
from pccl_py.peer.control import Mailbox
from pccl_py.types import Member, PeerId, View


class Roster:
    """peer: this one; group: its label. Any thread, from the first record on."""

    def __init__(self, peer: PeerId, group: str, mailbox: Mailbox) -> None:
        self.peer = peer
        self.group = group
        self._mailbox = mailbox

    def view(self) -> View:
        """The group's current view, members in rank order."""
        record = self._mailbox.record
        assert record is not None
        members = tuple(m for m in record.members if m.group == self.group)
        rank = next(i for i, m in enumerate(members) if m.peer == self.peer)
        return View(record.epoch, record.line, rank, members)

    def living(self, peers: Iterable[PeerId]) -> tuple[Member, ...]:
        """Those of `peers` that are members still, in that order."""
        members = {member.peer: member for member in self.view().members}
        return tuple(members[peer] for peer in peers if peer in members)

    def among(self, members: tuple[Member, ...], whom: str, told: Told) -> Among:
        """The participants of an op, if they are `members`, this peer among them."""
        record = self._mailbox.record
        assert record is not None
        peers = tuple(member.peer for member in members)
        told.note(record.line, len(peers))
        return Among(peers, peers.index(self.peer), whom, told)
