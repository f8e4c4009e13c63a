"""Text scenarios: commands to the pure coordinator, and what it does, readable and compared.

A line `> who what ...` is a command, an indented line is what the coordinator did, `#` a comment.
Peers are words; each has an id by order of appearance, and a new connection per Hello. Answers and
other messages carry the epoch and round that the coordinator last spoke of, unless told otherwise.

    > a hello [epoch=N] [stopped] [holding=BOOT.N] [min=N] [run=R] [group=G]
    > a drop | leave | refresh | repaired | lost b | timeout OP [text]
    > a sp PASSED SUBMITTED [round=BOOT.N] | at POSITION
    > a mismatch OP b FIELD MINE THEIRS | offer SEQ REVISION key=digit ...
    > a knows SEQ REVISION DONOR key,... | knows SEQ error TEXT
    > a answer [epoch=N] [stable=N] [contexts=7:1,8:2] [unreachable=b] [leaving]
      OP=R:01 OP=S:2 OP=X:2 (bits: segment 0
      first; S stable, X raised: number of segments; then :late :root=b :among=a,b
      and a class of loss :strict :fixed :exchange :to_root :from_root; with a root: :spread)
    > a measured b=40 c=80/10 (milliseconds, then megabytes a second)
    > wait SECONDS | restart | status | disk full | disk free
"""

from __future__ import annotations

import json
from pathlib import Path as FilePath

from pccl_py.coordinator import events as ke
from pccl_py.coordinator import invariants, machine, progress
from pccl_py.coordinator.state import Config, State, initial
from pccl_py.errors import Code
from pccl_py.protocol import messages as m
from pccl_py.types import (
    HELD_BY_ALL,
    REDO,
    OnLoss,
    Outcome,
    Path,
    PeerId,
    Record,
    Verdict,
    context_of,
    op_id,
)

CONFIG = Config(run=None, detection_s=5.0, deadline_s=600.0)


class Stage:
    """One coordinator and the peers that a scenario speaks of."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ids: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.connections: dict[str, int] = {}
        self.speakers: dict[int, str] = {}
        self.boot = 0
        self.journal: Record | None = None
        self.run: str | None = None
        self.is_full = False
        self.round: m.Round = (0, 0)
        self.state: State = initial(CONFIG)
        self.start()

    def start(self) -> list[str]:
        self.boot += 1
        self.state = initial(CONFIG)
        return self.feed(ke.Started(self.boot, self.journal, self.run))

    def feed(self, event: ke.Event) -> list[str]:
        before = self.state
        self.state, actions = machine.step(before, event, self.now)
        if self.is_full and any(isinstance(action, ke.Journal) for action in actions):
            self.state = before  # as the server does it
            return [*self.feed(ke.JournalFailed("it is full")), *self.feed(event)]
        if not isinstance(event, ke.Started):
            invariants.check(before, self.state, actions)
        return [line for action in actions if (line := self.show(action))]

    # -- commands

    def command(self, line: str) -> list[str]:
        who, *words = line.split()
        if who == "wait":
            until = self.now + float(words[0])
            done: list[str] = []
            while self.state.timer is not None and self.state.timer <= until:
                self.now = self.state.timer
                done += self.feed(ke.Tick())
            self.now = until
            return done
        if who == "restart":
            return self.start()
        if who == "disk":
            self.is_full = words[0] == "full"
            return [] if self.is_full else self.feed(ke.JournalWorks())
        if who == "status":
            body = json.loads(self._status())
            picked = {k: body[k] for k in ("epoch", "line", "waiting", "awaited", "excluded")}
            picked |= {"journal": body["journal"]} if body["journal"] else {}
            return [f"status {json.dumps(picked)}"]
        return self.peer(who, words[0], words[1:])

    def _status(self) -> str:
        return progress.status_json(self.state, self.now, {})

    def peer(self, who: str, verb: str, words: list[str]) -> list[str]:
        if who not in self.ids:
            self.ids[who] = len(self.ids) + 1
            self.names[self.ids[who]] = who
        if verb == "drop":
            return self.feed(ke.Disconnected(self.connections[who], "gone"))
        options = dict(word.split("=", 1) if "=" in word else (word, "") for word in words)
        if verb == "hello":
            return self.hello(who, options)
        message = self.message(who, verb, words, options)
        return self.feed(ke.Received(self.connections[who], message))

    def hello(self, who: str, options: dict[str, str]) -> list[str]:
        connection = len(self.speakers) + 1
        self.connections[who] = connection
        self.speakers[connection] = who
        boot, _, number = options.get("holding", "").partition(".")
        message = m.Hello(
            run=options.get("run", "r"),
            peer=PeerId(self.ids[who]),
            name=who,
            group=options.get("group", "g"),
            host="127.0.0.1",
            port=1000 + self.ids[who],
            min_members=int(options.get("min", "1")),
            epoch=int(options.get("epoch", "0")),
            stopped="stopped" in options,
            holding=(int(boot), int(number)) if number else None,
            nonce=b"",
            proof=b"",
        )
        return self.feed(ke.Received(connection, message))

    def knows(self, epoch: int, words: list[str]) -> m.Elected:
        seq, revision, *rest = (word for word in words if not word.startswith("epoch="))
        if revision == "error":
            return m.Elected(epoch, int(seq), 0, PeerId(0), (), " ".join(rest))
        dirty = tuple(rest[1].split(",")) if rest[1:] else ()
        return m.Elected(epoch, int(seq), int(revision), self.id(rest[0]), dirty, "")

    def message(self, who: str, verb: str, words: list[str], options: dict[str, str]) -> m.FromPeer:
        epoch = int(options.get("epoch", self.state.epoch))
        match verb:
            case "leave":
                return m.Leave(epoch)
            case "refresh":
                return m.Refresh(epoch)
            case "repaired":
                return m.Repaired(epoch)
            case "lost":
                return m.Lost(epoch, self.id(words[0]), "reset")
            case "timeout":
                return m.Timeout(epoch, _op(words[0]), " ".join(words[1:]))
            case "mismatch":
                op, other, field, mine, theirs = words
                return m.Mismatch(epoch, _op(op), self.id(other), field, mine, theirs)
            case "sp":
                boot, _, number = options.get("round", "").partition(".")
                round_ = (int(boot), int(number)) if number else self.round
                return m.Sp(epoch, round_, int(words[0]), int(words[1]))
            case "at":
                return m.At(epoch, self.round, int(words[0]))
            case "offer":
                pairs = [word.split("=") for word in words[2:]]
                keys = tuple(m.StateKey(key, bytes([int(digit)] * 16)) for key, digit in pairs)
                return m.Offer(epoch, int(words[0]), int(words[1]), keys, self.connections[who])
            case "knows":
                return self.knows(epoch, words)
            case "measured":
                return m.Measured(epoch, tuple(self.path(*word.split("=")) for word in words))
            case "answer":
                return self.answer(epoch, options)
        raise ValueError(verb)

    def answer(self, epoch: int, options: dict[str, str]) -> m.Answer:
        reports = tuple(self.report(_op(k), v) for k, v in options.items() if k[0].isdigit())
        stable = int(options.get("stable", "0"))
        lost = options.get("unreachable")
        pairs = options.get("contexts", "")
        contexts = [pair.split(":") for pair in pairs.split(",") if pair]
        return m.Answer(
            epoch,
            submitted=max([stable, *(r.op for r in reports if r.op < 1 << 32)]),
            stable=stable,
            contexts=tuple((int(c), int(s)) for c, s in contexts),
            ops=reports,
            unreachable=(self.id(lost),) if lost else (),
            leaving="leaving" in options,
        )

    def path(self, other: str, text: str) -> Path:
        ms, _, rate = text.partition("/")
        peer = self.id(other) if other in self.ids else PeerId(999)
        return Path(peer, int(float(ms) * 1000), int(float(rate or 0) * 1e6))

    def report(self, op: int, text: str) -> m.OpReport:
        letter, what, *flags = text.split(":")
        status = {"R": m.OpStatus.RUNNING, "S": m.OpStatus.STABLE, "X": m.OpStatus.RAISED}[letter]
        count = len(what) if letter == "R" else int(what)
        bits = int(what[::-1], 2) if letter == "R" else 0
        root = next((flag[5:] for flag in flags if flag.startswith("root=")), "")
        raised = letter == "X"
        return m.OpReport(
            op=op,
            status=status,
            segments=count,
            final=bits.to_bytes((count + 7) // 8, "little"),
            on_loss=self.on_loss(flags),
            root=self.id(root) if root else PeerId(0),
            among=self.among(flags),
            timed_out="late" in flags,
            code=Code.PEER_LOST if raised else 0,
            text="raised" if raised else "",
        )

    def on_loss(self, flags: list[str]) -> OnLoss:
        """The class as a flag; without one: SPREAD if there is a root, else REPAIR."""
        told = next((flag for flag in flags if flag.upper() in OnLoss.__members__), "")
        rooted = any(flag.startswith("root=") for flag in flags)
        return OnLoss[told.upper()] if told else OnLoss.SPREAD if rooted else OnLoss.REPAIR

    def among(self, flags: list[str]) -> bytes:
        """`among=a,b` as a bitmap over the ring of a's group; nothing for the whole group."""
        told = next((flag[6:] for flag in flags if flag.startswith("among=")), "")
        if not told:
            return b""
        peers = [self.id(name) for name in told.split(",")]
        assert self.state.record is not None
        ring = self.state.record.of_group(self.state.members[peers[0]].group).ring
        bits = sum(1 << ring.index(peer) for peer in peers)
        return bits.to_bytes((len(ring) + 7) // 8, "little")

    def id(self, name: str) -> PeerId:
        return PeerId(self.ids[name])

    # -- what it does, in words

    def show(self, action: ke.Action) -> str:
        match action:
            case ke.Send(connection=connection, message=message):
                who = self.speakers.get(connection, "?")
                if isinstance(message, m.StatePlan | m.StateError):
                    assert message.greeting == connection, "an outcome answers the last Hello"
                return f"{who} <- {self.words(message)}"
            case ke.Close(connection=connection):
                return f"close {self.speakers.get(connection, '?')}"
            case ke.Journal(record=record, run=run):
                self.journal, self.run = record, run
                return f"journal {self.record(record)}"
            case ke.Note(name=name, fields=fields, grave=grave):
                if name in ("view", "disconnected"):
                    return ""
                text = ", ".join(f"{k} {v}" for k, v in fields)
                return f"{'warning' if grave else 'note'} {name}: {text}"
        return ""  # timers show by what they do

    def words(self, message: m.FromCoordinator) -> str:
        match message:
            case m.Install(record=record):
                return f"Install {record.epoch}"
            case m.Flush(epoch=epoch):
                return f"Flush {epoch}"
            case m.Ask(round=round_):
                self.round = round_
                return f"Ask {round_[0]}.{round_[1]}"
            case m.Target(round=round_, position=position):
                return f"Target {round_[0]}.{round_[1]} at {position}"
            case m.Release(round=round_):
                return f"Release {round_[0]}.{round_[1]}"
            case m.Waiting(text=text):
                return f"Waiting: {text}"
            case m.Refused(code=code, text=text):
                return f"Refused {Code(code).name}: {text}"
            case m.EvictedMsg(reason=reason):
                return f"Evicted: {reason}"
            case m.StatePlan(seq=seq, revision=revision, donor=donor, dirty=dirty):
                keys = ",".join(dirty) or "nothing"
                return f"StatePlan {seq}: revision {revision} of {self.names[donor]}, dirty {keys}"
            case m.StateError(seq=seq, text=text):
                return f"StateError {seq}: {text}"
        return type(message).__name__

    def record(self, record: Record) -> str:
        parts = [f"{record.epoch} line {record.line}"]
        for group in record.groups:
            ring = " ".join(self.names[peer] for peer in group.ring)
            stable = f" stable {group.stable}" if group.stable else ""
            hub = f" hub {self.names[group.hub]}" if group.hub else ""
            large = f" large {group.large.name}" if group.large else ""
            parts.append(f"{group.group}[{ring}]{hub}{large}{stable}")
            parts += [self.verdict(group.ring, verdict) for verdict in group.verdicts]
        if record.excluded:
            pairs = (f"{self.names[a]}-{self.names[b]}" for a, b in record.excluded)
            parts.append("without " + " ".join(pairs))
        return "; ".join(parts)

    def verdict(self, ring: tuple[PeerId, ...], verdict: Verdict) -> str:
        if verdict.outcome is Outcome.DONE:
            return f"op {_shown(verdict.op)} done"
        if verdict.outcome is Outcome.ABORT:
            return f"op {_shown(verdict.op)} abort {Code(verdict.code).name} ({verdict.text})"
        special = {REDO: "redo", HELD_BY_ALL: "held"}
        holders = (special.get(h) or f"by {self.names[ring[h]]}" for h in verdict.holders)
        return f"op {_shown(verdict.op)} {', '.join(holders) or 'redo'}"


def _op(text: str) -> int:
    """`7.1` is op 1 of context 7."""
    context, _, number = text.rpartition(".")
    return op_id(int(number), context=int(context)) if context else int(text)


def _shown(op: int) -> str:
    context = context_of(op)
    return f"{context}.{op - op_id(0, context=context)}" if context else str(op)


def play(script: str) -> str:
    """The script with what the coordinator did after each command."""
    stage = Stage()
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith("  "):
            continue
        lines.append(line)
        if line.startswith("> "):
            lines += [f"  {did}" for did in stage.command(line[2:])]
    return "\n".join(lines) + "\n"


def scripts() -> list[FilePath]:
    return sorted((FilePath(__file__).parent / "scenarios").glob("*.txt"))


__all__ = ["Stage", "play", "scripts"]
