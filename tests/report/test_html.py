"""The report: complete, self-contained, well-formed, and honest about failures."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from pccl_py.report import chart, html, oracle
from pccl_py.report.records import Event, Left, Started
from tests.report.story import EXPECTED, changed, good

VOID = {"meta", "br", "hr", "link", "img"}


class Nesting(HTMLParser):
    """Fails on tags that do not match, and keeps what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(events: list[Event]) -> str:
    return html.page(events, EXPECTED, oracle.judge(events, EXPECTED), "make <demo>")


def read(text: str) -> Nesting:
    parser = Nesting()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page(good())
    parser = read(text)
    assert parser.loads == []
    assert not re.search(r"https?:|//|@import|url\(|<script", text)
    assert parser.seen.count("svg") == 2
    assert "nan" not in text


def test_it_tells_the_story() -> None:
    text = page(good())
    for said in ("survived kill -9", "w2 killed", "back", "w3 joins", "5.50 → 1.90", "hash6",
                 "byte bigrams 2.45", "make &lt;demo&gt;", "1.0 s"):  # fmt: skip
        assert said in text, said
    assert text.count('class="ok"') == 6
    assert text.count('<rect class="member"') == 5  # w2 has two lives
    assert text.count('<rect class="starting"') == 5


def test_a_failed_run_says_so() -> None:
    text = page(changed(good(), Left, {"worker": "w1"}, digest="other"))
    assert "failed its checks" in text
    assert text.count('class="bad"') == 1


def test_a_run_that_never_began_has_a_page() -> None:
    read(page([]))
    read(page([Started(1.0, "w0", 1, 0)]))


def test_text_is_escaped() -> None:
    expected = oracle.Expected(("<b>", "w1"), "w1", "w2", 6, None)
    read(html.page(good(), expected, oracle.judge(good(), expected), "x"))


@pytest.mark.parametrize(
    ("low", "high", "count", "found"),
    [
        (0, 30, 6, [0, 5, 10, 15, 20, 25, 30]),
        (1.5, 5.6, 5, [2, 3, 4, 5]),
        (0, 97, 6, [0, 20, 40, 60, 80]),
        (3, 3, 4, [3]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, found: list[float]) -> None:
    assert chart.ticks(low, high, count) == pytest.approx(found)


def test_a_curve_without_points() -> None:
    assert "no round" in chart.loss_curve([], [], math.nan, [], 5)
    assert "<svg" in chart.loss_curve([(1, 2.0)], [], math.nan, [], 5)
