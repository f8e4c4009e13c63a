"""The main job's own parts: the text and its split, the bigrams, the model, and the loop alone."""

from __future__ import annotations

import importlib.util
import json
import math
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from pccl_py.types import Member, OpInfo, PeerId, SyncInfo

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_gpt.py"
TINY = "--layers 1 --width 16 --heads 2 --context 16 --batch 2 --inner-steps 3 --eval-batches 1"


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_gpt", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_standard_library_is_the_text(gpt: ModuleType) -> None:
    names = [name for name, _ in gpt.text_files(None)]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert all((Path(sysconfig.get_path("stdlib")) / name).is_file() for name in names[:5])


def test_a_tenth_is_held_out_and_no_file_is_in_both(gpt: ModuleType) -> None:
    train, valid = gpt.load_text(None)
    assert 0.05 < len(valid) / (len(train) + len(valid)) < 0.15
    again, _ = gpt.load_text(None)
    assert torch.equal(train, again)
    piece = bytes(valid[5000:5200].tolist())
    assert piece not in bytes(train.numpy())


def test_own_text(gpt: ModuleType, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_bytes(bytes(range(256)) * 100)
    train, valid = gpt.load_text(one)
    assert (len(train), len(valid)) == (23040, 2560)
    for number in range(40):
        (tmp_path / f"more{number}.txt").write_bytes(b"x" * 1000)
    train, valid = gpt.load_text(tmp_path)
    assert len(train) > len(valid) > 0


def test_too_little_text_is_one_line(gpt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(SystemExit, match="too little text"):
        gpt.load_text(tmp_path)


def test_windows_are_pieces_and_their_next_bytes(gpt: ModuleType) -> None:
    text = torch.arange(200, dtype=torch.uint8)
    x, y = gpt.windows(text, 50, 8, torch.Generator().manual_seed(1))
    assert x.shape == y.shape == (50, 8)
    assert torch.equal(x + 1, y)
    assert {*x.flatten().tolist()} <= set(range(199))
    last = gpt.windows(text[:9], 3, 8, torch.Generator())  # exactly one place fits
    assert torch.equal(last[1][:, -1], torch.full((3,), 8))


def test_bigrams_against_a_loop(gpt: ModuleType) -> None:
    train, valid = torch.tensor([1, 2, 1, 2, 1, 3]).byte(), torch.tensor([1, 2, 9, 1]).byte()
    # after 1: 2 twice, 3 once; after 2: 1 twice; after 9: nothing
    expected = -(math.log(3 / 259) + math.log(1 / 258) + math.log(1 / 256)) / 3
    assert gpt.bigram_loss(train, valid) == pytest.approx(expected)


def test_the_model_has_its_size_and_sees_no_future(gpt: ModuleType) -> None:
    model = gpt.GPT(layers=4, width=128, heads=4, context=128)
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 0.9e6
    torch.manual_seed(0)
    small = gpt.GPT(layers=2, width=32, heads=2, context=16)
    with torch.no_grad():
        for p in small.parameters():
            p.normal_(std=0.3)
        x = torch.randint(256, (1, 16))
        changed = x.clone()
        changed[0, 9] = (changed[0, 9] + 1) % 256
        differs = (small(x) != small(changed)).any(dim=-1)[0]
    assert not differs[:9].any()
    assert differs[9:].all()


def test_it_begins_knowing_nothing(gpt: ModuleType) -> None:
    torch.manual_seed(0)
    model = gpt.GPT(layers=1, width=16, heads=2, context=16)
    x = torch.randint(256, (2, 16))
    assert gpt.loss_of(model, x, x).item() == pytest.approx(math.log(256))


class Alone:
    """A communicator with one member, which sends nothing."""

    line, world_size, rank, epoch = 1, 1, 0, 1
    members = (Member(PeerId(1), "w0", "default", "127.0.0.1", 1),)

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def all_reduce(self, tensor: Tensor, /, op: str = "avg") -> OpInfo:
        return OpInfo(1, 1, 0, 0, 0, 0.0, "self", "none")

    def update(self) -> None:
        return None

    def sync_state(self, state: Mapping[str, Tensor], /, revision: int) -> SyncInfo:
        return SyncInfo(revision, "", (), 0, 0.0)


def test_the_loop_writes_what_the_demo_reads(
    gpt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt.pccl, "join", lambda **_: Alone())
    text = tmp_path / "text.txt"
    text.write_bytes(b"to be or not to be, that is the question\n" * 500)
    out = tmp_path / "outer.pt"
    argv = f"{TINY} --rounds 4 --data {text} --metrics {tmp_path / 'm'} --out {out}"
    gpt.train(gpt.arguments(argv.split()))
    (file,) = (tmp_path / "m").glob("w0-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "joined", "evaluated", *["reducing", "round"] * 4, "left", "evaluated",
    ]  # fmt: skip
    assert [line["round"] for line in lines if line["event"] == "round"] == [1, 2, 3, 4]
    start, end = (line for line in lines if line["event"] == "evaluated")
    assert end["valid_loss"] < start["valid_loss"]
    assert end["bigram_loss"] > 0
    assert lines[-2]["digest"] == lines[-3]["digest"]
    assert torch.load(out, weights_only=True)["round"] == 4
