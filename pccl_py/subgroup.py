"""Some members of a group, in an order of their own, and their collectives (layer 5).

Made by `Communicator.subgroup` on each of them, without a message: the id of its context is a hash
of who they are. It shares the communicator's links, deadline and account of ops; membership,
safe points and shared state stay the communicator's.
"""

from __future__ import annotations

from pccl_py import arguments
from pccl_py.among import Among, Told, context_of
from pccl_py.collectives import Collectives
from pccl_py.errors import UsageError
from pccl_py.flight import Flight
from pccl_py.roster import Roster
from pccl_py.types import Member, PeerId

NAMES_MAX = 4  # members that an error text names


class Subgroup(Collectives):
    """See `Collectives`. It lasts as long as the communicator, across safe points; those of its
    members that die or leave are gone from it, and the ranks of those behind them fall."""

    def __init__(
        self, parent: object, flight: Flight, roster: Roster, members: tuple[Member, ...]
    ) -> None:
        """parent: what must live as long; members: in rank order, this peer among them."""
        self._parent = parent
        self._flight = flight
        self._roster = roster
        self._peers = tuple(member.peer for member in members)
        self._context = context_of("subgroup", roster.group, *self._peers)
        names = ", ".join(member.name for member in members[:NAMES_MAX])
        self._whom = f"sub-group {names}{', …' if len(members) > NAMES_MAX else ''}"
        self._told = Told()
        self._among()

    @property
    def members(self) -> tuple[Member, ...]:
        """Its members that are in the view, in rank order."""
        return self._roster.living(self._peers)

    @property
    def world_size(self) -> int:
        """How many of its members are in the view."""
        return self._now().size

    @property
    def rank(self) -> int:
        """This peer's position among `members`; it may fall when members before it go."""
        return self._now().rank

    def subgroup(self, ranks: object, /) -> Subgroup:
        """As `Communicator.subgroup`, with ranks of this one."""
        return subgroup_of(self, self._flight, self._roster, self._among(), ranks)

    def _among(self) -> Among:
        self._flight.check_usable()
        return self._now()

    def _now(self) -> Among:
        return self._roster.among(self.members, "sub-group", self._told)


def subgroup_of(
    parent: object, flight: Flight, roster: Roster, among: Among, ranks: object
) -> Subgroup:
    """The sub-group of some ranks of a parent. Raises UsageError, or PeerLost for ranks that were
    some until a member was lost."""
    if not isinstance(ranks, list | tuple | range) or not ranks:
        raise UsageError(f"ranks={arguments.shown(ranks)} must be a list of ranks, and not empty")
    peers: list[PeerId] = [among.peer(f"ranks[{i}]", rank) for i, rank in enumerate(ranks)]
    if len(set(peers)) != len(peers):
        raise UsageError(f"ranks={arguments.shown(ranks)} must be different")
    if roster.peer not in peers:
        raise UsageError(
            f"ranks={arguments.shown(ranks)} must have this member's own rank, {among.rank}: only "
            "members of a sub-group make it"
        )
    return Subgroup(parent, flight, roster, roster.living(peers))
