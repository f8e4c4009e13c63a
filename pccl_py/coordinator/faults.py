"""What is wrong with a message that decoded well (layer 2): sizes and ranges that no honest peer
sends. Called by `machine` before anything else looks at a message; a fault costs its sender the
connection and nobody else anything.
"""

from __future__ import annotations

from pccl_py.coordinator.state import CONTEXT_MAX, GROUP_MAX, KEYS_MAX, OPS_MAX, SEGMENTS_MAX
from pccl_py.protocol.encoding import MESSAGE_BYTES_MAX
from pccl_py.protocol.messages import (
    AWAITED_MAX,
    OPS_IN_FLIGHT_MAX,
    Answer,
    At,
    Elected,
    Hello,
    InFlight,
    Leave,
    Lost,
    Measured,
    Message,
    Mismatch,
    Offer,
    OpReport,
    OpStatus,
    Refresh,
    Repaired,
    Sp,
    StatusRequest,
    Timeout,
)

_DIGEST_BYTES = 16
_OP_MAX = 1 << 64
_FROM_PEER = (
    Hello, Lost, Timeout, Mismatch, Refresh, Leave, Answer, Sp, At, Repaired, Offer, StatusRequest,
    Measured, InFlight, Elected,
)  # fmt: skip


def find(message: Message) -> str:
    """The fault in words, or empty. Total: a message of the other direction is a fault as well."""
    if not isinstance(message, _FROM_PEER):
        return f"{type(message).__name__} does not travel to the coordinator"
    match message:
        case Hello():
            if message.peer <= 0 or message.peer >= _OP_MAX:
                return "a peer id is a positive 64-bit number"
            if not 0 < message.port < 65536 or message.min_members < 1 or message.epoch < 0:
                return "Hello with a port, min_members or epoch out of range"
        case Timeout(op=op) | Mismatch(op=op):
            if not 0 < op < _OP_MAX:
                return "an op id out of range"
        case Answer():
            return _answer(message)
        case Sp():
            if message.passed < -1 or message.submitted < 0:
                return "Sp with a negative position"
        case At():
            if message.position < 0:
                return "At with a negative position"
        case Offer():
            return _offer(message)
        case Elected():
            return _elected(message)
        case Measured():
            if len(message.paths) > GROUP_MAX:
                return "Measured with more paths than a group has members"
            if len({path.peer for path in message.paths}) != len(message.paths):
                return "Measured with a peer twice"
        case InFlight():
            if len(message.ops) > OPS_IN_FLIGHT_MAX or message.running < len(message.ops):
                return "InFlight with more ops than it may, or says it has"
            if any(len(op.awaited) > AWAITED_MAX for op in message.ops):
                return "InFlight with too many members awaited"
        case _:
            pass
    return ""


def _answer(message: Answer) -> str:
    if len(message.ops) > OPS_MAX or len(message.unreachable) > GROUP_MAX:
        return "Answer with too many entries"
    if message.submitted < 0 or message.stable < 0:
        return "Answer with a negative number"
    fault = _contexts(message.contexts)
    if fault:
        return fault
    if len({report.op for report in message.ops}) != len(message.ops):
        return "Answer with an op twice"
    return next((fault for report in message.ops if (fault := _report(report))), "")


def _contexts(contexts: tuple[tuple[int, int], ...]) -> str:
    if len(contexts) > OPS_MAX:
        return "Answer with too many entries"
    if not all(0 < context < CONTEXT_MAX and stable >= 0 for context, stable in contexts):
        return "a context or its stable out of range"
    if len(dict(contexts)) != len(contexts):
        return "Answer with a context twice"
    return ""


def _report(report: OpReport) -> str:
    if not 0 < report.op < _OP_MAX or not 0 <= report.segments <= SEGMENTS_MAX:
        return "an op or its number of segments out of range"
    if report.status is OpStatus.RUNNING and len(report.final) != (report.segments + 7) // 8:
        return "a bitmap whose size does not match the number of segments"
    if len(report.among) > GROUP_MAX // 8:
        return "an op among more members than a group may have"
    return ""


def _offer(message: Offer) -> str:
    if len(message.keys) > KEYS_MAX or message.seq < 0 or message.revision < 0:
        return "Offer with too many keys, or a negative number"
    if len({key.key for key in message.keys}) != len(message.keys):
        return "Offer with a key twice"
    if any(len(key.digest) != _DIGEST_BYTES for key in message.keys):
        return "Offer with a digest that is not 16 bytes"
    return ""


def _elected(message: Elected) -> str:
    """What is taken from it is told to others: it must fit in what they may be told."""
    if message.seq < 0 or message.revision < 0:
        return "Elected with a negative number"
    if bool(message.error) == bool(message.donor) or (message.error and message.dirty):
        return "Elected with both an error and a plan, or neither"
    if len(set(message.dirty)) != len(message.dirty):
        return "Elected with a key twice"
    offered_bytes = sum(len(key.encode()) + _DIGEST_BYTES for key in message.dirty)
    if len(message.dirty) > KEYS_MAX or offered_bytes > MESSAGE_BYTES_MAX:
        return "Elected with more keys than can have been offered"
    return ""
