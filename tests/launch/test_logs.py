"""Worker output: any bytes in, bounded printable lines out."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pccl_py.launch.logs import LINE_MAX, LineSplitter, LogFile, Terminal, printable


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.close()


def test_lines_across_chunks() -> None:
    assert split(b"one\ntw", b"o\n\nthree") == ["one", "two", "", "three"]


def test_a_character_cut_in_two() -> None:
    assert split("ä\n".encode()[:1], "ä\n".encode()[1:]) == ["ä"]


def test_carriage_returns_show_the_last_state() -> None:
    assert split(b"10 %\r50 %\r100 %\r\n") == ["100 %"]
    assert split(b"dos\r\n") == ["dos"]


def test_control_characters_become_visible() -> None:
    assert printable(b"a\x07b\x00c\td\x1b[1me\xff") == "a\ufffdb\ufffdc\td\x1b[1me\ufffd"


def test_long_lines_come_in_pieces() -> None:
    total = 3 * LINE_MAX + 5
    for chunks in ((b"x" * total + b"\nend\n",), (b"x",) * total + (b"\nend\n",)):
        *pieces, last = split(*chunks)
        assert last == "end"
        assert sum(piece.count("x") for piece in pieces) == total
        assert max(map(len, pieces)) <= LINE_MAX + 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_bytes_any_cut(chunks: list[bytes]) -> None:
    lines = split(*chunks)
    assert lines == split(b"".join(chunks))
    assert not any("\n" in line or "\r" in line for line in lines)


def test_terminal_writes_prefixes_and_no_colour_into_a_pipe() -> None:
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    terminal = Terminal(out_w, err_w)
    terminal.worker_line("w0", "stdout", "hello")
    terminal.worker_line("w1", "stderr", "ouch")
    terminal.say("calm")
    os.close(out_w)
    os.close(err_w)
    with open(out_r, "rb") as out, open(err_r, "rb") as err:
        assert out.read() == b"[w0] hello\n"
        assert err.read() == b"[w1] ouch\npccl run: calm\n"


def test_terminal_colours_on_a_terminal() -> None:
    master, slave = os.openpty()
    terminal = Terminal(slave, slave)
    terminal.worker_line("w0", "stdout", "hello")
    text = os.read(master, 1000)
    os.close(slave)
    os.close(master)
    assert text.startswith(b"\x1b[")
    assert b"[w0]\x1b[0m hello" in text


def test_log_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path, "w0", 2)
    log.write("a")
    log.write("b")
    log.close()
    assert (tmp_path / "w0.2.log").read_text() == "a\nb\n"
