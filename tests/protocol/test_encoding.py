"""Twin of pccl_py.protocol.encoding and pccl_py.protocol.shapes."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.errors import Code, LocalProtocolError, RemoteProtocolError
from pccl_py.protocol import encoding, shapes
from pccl_py.protocol.messages import (
    CODES,
    Answer,
    Ask,
    At,
    Bye,
    Elected,
    EvictedMsg,
    Flush,
    Hello,
    InFlight,
    Inspect,
    Install,
    Leave,
    Lost,
    Measured,
    Message,
    Mismatch,
    Offer,
    OpReport,
    OpStatus,
    Refresh,
    Refused,
    Release,
    Repaired,
    Sp,
    StateError,
    StateKey,
    StatePlan,
    Status,
    StatusRequest,
    Target,
    Timeout,
    Waiting,
)
from pccl_py.types import (
    GroupRecord,
    Kind,
    Member,
    OnLoss,
    OpInFlight,
    Outcome,
    Path,
    PeerId,
    Phase,
    Record,
    Route,
    Verdict,
)  # fmt: skip
from tests.protocol.strategies import messages

NONCE = bytes(range(16))
ONE, TWO = PeerId(1), PeerId(0xFEDCBA9876543210)
RECORD = Record(
    line=1,
    epoch=2,
    fresh=True,
    members=(Member(ONE, "a", "g", "10.0.0.1", 7), Member(TWO, "b", "g", "::1", 8)),
    groups=(
        GroupRecord(
            "g", (ONE, TWO), 3,
            (Verdict(4, Outcome.RUN, (0, -1, -2)), Verdict(5, Outcome.ABORT, (), 3, "late")),
            TWO, Route.STAR,
        ),
    ),
    excluded=((ONE, TWO),),
)  # fmt: skip
HELLO = Hello("run", TWO, "n", "g", "127.0.0.1", 9, 2, 5, True, (1, 2), NONCE, b"\xaa" * 32,
              2000)  # fmt: skip

GOLDEN: tuple[tuple[Message, str], ...] = (
    (
        HELLO,
        (
            "9f0401a372756ecffedcba9876543210a16ea167a93132372e302e302e31090205c3920102c410000102"
            "030405060708090a0b0c0d0e0fc420aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
            "aaaaaaaaaacd07d0"
        ),
    ),
    (Lost(5, ONE, "reset"), "9504020501a57265736574"),
    (Timeout(5, 6, "waiting for b"), "9504030506ad77616974696e6720666f722062"),
    (
        Mismatch(5, 6, TWO, "dtype", "float32", "int8"),
        "9804040506cffedcba9876543210a56474797065a7666c6f61743332a4696e7438",
    ),
    (Refresh(5), "93040505"),
    (Leave(5), "93040605"),
    (
        Answer(
            5,
            9,
            7,
            ((5, 3),),
            (
                OpReport(
                    8, OpStatus.RUNNING, 9, b"\xff\x01", OnLoss.SPREAD, ONE, b"\x03", False, 0, ""
                ),
                OpReport(
                    9, OpStatus.RAISED, 1, b"\x00", OnLoss.REPAIR, PeerId(0), b"", True, 3, "late"
                ),
            ),
            (TWO,),
            False,
        ),
        (
            "99040705090791920503929a080009c402ff010601c40103c200a09a090201c401000000c400c303a46c61"
            "746591cffedcba9876543210c2"
        ),
    ),
    (Sp(5, (1, 2), -1, 3), "96040805920102ff03"),
    (At(5, (1, 2), 4), "9504090592010204"),
    (Repaired(5), "93040a05"),
    (
        Offer(5, 1, 40, (StateKey("w", NONCE),), 3),
        "97040b0501289192a177c410000102030405060708090a0b0c0d0e0f03",
    ),
    (StatusRequest("run", NONCE, b""), "95040ca372756ec410000102030405060708090a0b0c0d0e0fc400"),
    (Measured(5, (Path(TWO, 300, 1 << 20),)), "94040d059193cffedcba9876543210cd012cce00100000"),
    (
        InFlight(
            5,
            (1, 2),
            (OpInFlight(6, "w", Kind.REDUCE, Phase.COPY, 9, 3, 70, (TWO,), 1, False),),
            4,
        ),
        ("96040e05920102919a06a177020409034691cffedcba987654321001c204"),
    ),
    (Elected(5, 1, 40, ONE, ("w",), ""), "98040f0501280191a177a0"),
    (Refused(1, "no"), "94044001a26e6f"),
    (Waiting("for b"), "930441a5666f722062"),
    (
        Install(RECORD),
        (
            "930442960102c3929501a161a167a831302e302e302e310795cffedcba9876543210a162a167a33a3a31"
            "089196a1679201cffedcba987654321003929504009300fffe00a09505029003a46c617465cffedcba98"
            "7654321002919201cffedcba9876543210"
        ),
    ),
    (Flush(5), "93044305"),
    (Ask(5, (1, 2)), "94044405920102"),
    (Target(5, (1, 2), 4), "9504450592010204"),
    (Release(5, (1, 2)), "94044605920102"),
    (StatePlan(5, 1, 40, ONE, ("w",), 3), "9804470501280191a17703"),
    (StateError(5, 1, "keys differ", 3), "9604480501ab6b6579732064696666657203"),
    (Bye(), "920449"),
    (EvictedMsg("silent"), "93044aa673696c656e74"),
    (Inspect((1, 2)), "93044c920102"),
    (Status("{}"), "93044ba27b7d"),
)


@pytest.mark.parametrize(("message", "hex_bytes"), GOLDEN)
def test_golden_bytes(message: Message, hex_bytes: str) -> None:
    assert encoding.encode(message).hex() == hex_bytes
    assert encoding.decode(bytes.fromhex(hex_bytes)) == message


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, _ in GOLDEN} == set(CODES.values())


@settings(max_examples=200, deadline=None)
@given(messages())
def test_round_trip(message: Message) -> None:
    assert encoding.decode(encoding.encode(message)) == message


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_a_message_or_a_remote_protocol_error(data: bytes) -> None:
    _decode_quietly(data)


@settings(max_examples=200, deadline=None)
@given(messages(), st.data())
def test_mutated_bytes_are_a_message_or_a_remote_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    wire = bytearray(encoding.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, min(len(wire), 400) - 1))] = data.draw(st.integers(0, 255))
    _decode_quietly(bytes(wire))
    _decode_quietly(bytes(wire[: data.draw(st.integers(0, len(wire)))]))


def _decode_quietly(data: bytes) -> None:
    try:
        message = encoding.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) in CODES.values()


def _refused(raw: object) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        encoding.decode(msgpack.packb(raw))
    assert not isinstance(caught.value, encoding.VersionMismatch)


def test_strict_about_arity_types_and_limits() -> None:
    _refused([4, 67])  # Flush without its epoch
    _refused([4, 67, 1, 2])  # with one field too many
    _refused([4, 67, True])  # a boolean is not an integer
    _refused([4, 67, 1.0])
    _refused([4, 67, "1"])
    _refused([4, 67, -1])
    _refused([4, 67, None])
    _refused([4, 67, [1]])
    _refused([4, 63])  # unknown code
    _refused([4, True])
    _refused([4.0, 67, 1])
    _refused([4])
    _refused([])
    _refused({})
    _refused("text")
    _refused([4, 73, {}])
    _refused([4, 64, 8, "an unknown error code"])
    _refused([4, 64, 0, "refused with the code of success"])
    _refused([4, 65, "x" * 4097])
    _refused([4, 71, 1, 1, 1, 1, ["k"] * 65537])  # too many dirty keys


def test_names_are_bounded_in_bytes_not_characters() -> None:
    with pytest.raises(LocalProtocolError, match="65"):
        encoding.encode(dataclasses.replace(HELLO, name="x" * 65))
    raw = msgpack.unpackb(encoding.encode(HELLO))
    raw[4] = "é" * 33
    _refused(raw)


@pytest.mark.parametrize(
    "field", [("run", "x" * 129), ("group", "x" * 65), ("host", "x" * 64), ("nonce", b"x"),
              ("port", 65536), ("peer", 2**64), ("min_members", -1), ("holding", (1,)),
              ("stopped", 1), ("name", "\ud800")],
)  # fmt: skip
def test_our_own_side_is_held_to_the_same_limits(field: tuple[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        encoding.encode(dataclasses.replace(HELLO, **{field[0]: field[1]}))


def test_our_own_side_may_name_error_codes() -> None:
    assert encoding.decode(encoding.encode(Refused(Code.USAGE, "no"))) == Refused(1, "no")


def test_unknown_enum_value() -> None:
    report = OpReport(1, OpStatus.RUNNING, 8, b"\x01", OnLoss.REPAIR, PeerId(0), b"", False, 0, "")
    raw = msgpack.unpackb(encoding.encode(Answer(1, 1, 0, (), (report,), (), False)))
    raw[6][0][1] = 3
    _refused(raw)


def test_trailing_bytes_and_oversize() -> None:
    wire = encoding.encode(Flush(1))
    with pytest.raises(RemoteProtocolError):
        encoding.decode(wire + b"\x00")
    with pytest.raises(RemoteProtocolError, match="most"):
        encoding.decode(bytes(encoding.MESSAGE_BYTES_MAX + 1))
    with pytest.raises(RemoteProtocolError, match="most"):
        encoding.decode(wire, bytes_max=2)


def test_array_headers_that_promise_much_are_refused_cheaply() -> None:
    deep = b"\xdd\x00\x10\x00\x00" * 400
    with pytest.raises(RemoteProtocolError):
        encoding.decode(deep, encoding.GREETING_BYTES_MAX)


def test_the_largest_hello_is_a_greeting() -> None:
    largest = dataclasses.replace(
        HELLO, run="r" * 128, name="n" * 64, group="g" * 64, host="h" * 63,
        holding=(2**64 - 1, 2**64 - 1), epoch=2**64 - 1, min_members=2**64 - 1,
    )  # fmt: skip
    assert len(encoding.encode(largest)) <= encoding.GREETING_BYTES_MAX


def test_free_texts_are_cut_between_characters() -> None:
    cut = encoding.decode(encoding.encode(Lost(1, ONE, "é" * 4000 + "\ud800")))
    assert cut == Lost(1, ONE, "é" * 2048)


def test_other_version_is_named() -> None:
    for raw in ([1, 1, "anything"], [0, 64], [9, 999]):
        with pytest.raises(encoding.VersionMismatch, match="version") as caught:
            encoding.decode(msgpack.packb(raw))
        assert caught.value.version == raw[0]


def test_refused_is_readable_across_versions() -> None:
    later = msgpack.packb([7, 64, 1, "wrong version", "a field of version 7"])
    assert encoding.decode(later) == Refused(1, "wrong version")
    unknown = msgpack.packb([7, 64, 99, "new class of error"])
    assert encoding.decode(unknown) == Refused(Code.PROTOCOL, "new class of error")
    with pytest.raises(RemoteProtocolError):
        encoding.decode(msgpack.packb([7, 64, "1", 2]))


def test_hello_proof_covers_every_field_but_itself() -> None:
    proof = encoding.hello_proof(b"secret", HELLO)
    assert len(proof) == 32
    assert encoding.hello_proof(b"secret", dataclasses.replace(HELLO, proof=b"")) == proof
    assert encoding.hello_proof(b"other", HELLO) != proof
    for change in ({"epoch": 6}, {"run": "x"}, {"nonce": bytes(16)}, {"holding": None}):
        assert encoding.hello_proof(b"secret", dataclasses.replace(HELLO, **change)) != proof


def test_signed_messages_are_good_under_their_secret_only() -> None:
    request = StatusRequest("run", NONCE, b"")
    for message in (
        encoding.signed_hello(b"secret", HELLO),
        encoding.signed_status(b"secret", request),
    ):
        assert encoding.proof_is_good(b"secret", message)
        assert not encoding.proof_is_good(b"other", message)
        assert not encoding.proof_is_good(b"secret", dataclasses.replace(message, proof=b""))
        assert not encoding.proof_is_good(b"secret", dataclasses.replace(message, run="else"))
    assert encoding.signed_hello(None, HELLO).proof == b""


def test_proofs_of_different_kinds_do_not_meet() -> None:
    assert encoding._HELLO_DOMAIN != encoding._STATUS_DOMAIN


def test_journaled_view_round_trip() -> None:
    assert encoding.decode_view(encoding.encode_view(RECORD, "run")) == (RECORD, "run")
    for bad in (b"", b"\xc0", msgpack.packb([2, "run"]), msgpack.packb([2, 5, []])):
        with pytest.raises(RemoteProtocolError):
            encoding.decode_view(bad)
    with pytest.raises(encoding.VersionMismatch):
        encoding.decode_view(msgpack.packb([1, "run", []]))


def test_printable_leaves_nothing_for_a_terminal_to_obey() -> None:
    hostile = "a\x1b[2Jb\nc\x00\u202ed\x9be\u2028f"
    assert encoding.printable(hostile) == "a?[2Jb c??d?e f"
    assert encoding.printable("grüße 東京") == "grüße 東京"
    assert encoding.printable("x" * 50, chars_max=10) == "x" * 10 + "…"


def test_clip_keeps_what_fits() -> None:
    assert shapes.clip("abc", 3) == "abc"
    assert shapes.clip("aé", 2) == "a"
