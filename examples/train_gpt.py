"""Train a small byte-level GPT with DiLoCo on any number of workers that may come, go and die.

    pccl run -n 4 examples/train_gpt.py                      # four workers on this machine
    pccl run -n 1 --coordinator HOST:PORT examples/train_gpt.py      # one more, at any time

The text is the Python standard library's own source, which every machine has; `--data PATH` takes a
file or a folder of your own. Read it from top to bottom: data, model, training loop. What
belongs to pccl in the loop are the three lines marked with `# pccl`; the rest is plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import pccl_py as pccl
from pccl_py.optim import DiLoCo

BYTES = 256  # the vocabulary
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

# ------------------------------------------------------------------------------------------ data


def text_files(data: Path | None) -> list[tuple[str, Path]]:
    """(name, path) of every file to read, by name, so that all machines agree on the order."""
    root = data or Path(sysconfig.get_path("stdlib"))
    if root.is_file():
        return [(root.name, root)]
    found = [
        (path.relative_to(root).as_posix(), path)
        for path in root.rglob("*" if data else "*.py")
        if path.is_file() and not LEFT_OUT & set(path.relative_to(root).parts)
    ]
    return sorted(found)


def load_text(data: Path | None) -> tuple[Tensor, Tensor]:
    """Training and validation bytes, uint8: a tenth of the files, chosen by their name's checksum,
    is kept for validation; a single file is cut at 90 %."""
    files = text_files(data)
    if len(files) == 1:
        raw = files[0][1].read_bytes()
        cut = len(raw) * 9 // 10
        parts = raw[:cut], raw[cut:]
    else:
        held_out = [zlib.crc32(name.encode()) % 10 == 0 for name, _ in files]
        both = [(path.read_bytes(), out) for (_, path), out in zip(files, held_out, strict=True)]
        parts = (
            b"\n".join(raw for raw, out in both if not out),
            b"\n".join(raw for raw, out in both if out),
        )
    if min(map(len, parts)) < 1024:
        sys.exit(
            f"train_gpt: too little text in {data}: {len(parts[0])} bytes to train on and "
            f"{len(parts[1])} to validate with; give more with --data"
        )
    train, valid = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts)
    return train, valid


def windows(text: Tensor, count: int, context: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` random pieces of the text and their next bytes, int64 (count, context) each."""
    start = torch.randint(len(text) - context, (count, 1), generator=rng)
    piece = text[start + torch.arange(context + 1)].long()
    return piece[:, :-1], piece[:, 1:]


def bigram_loss(train: Tensor, valid: Tensor) -> float:
    """Cross-entropy, nats per byte, of the validation text under the training text's byte bigrams
    with add-one smoothing: what a model knows that sees one byte of context."""
    pair = train[:-1].long() * BYTES + train[1:]
    counts = torch.bincount(pair, minlength=BYTES**2).view(BYTES, BYTES).double() + 1
    log_p = (counts / counts.sum(1, keepdim=True)).log()
    return -log_p[valid[:-1].long(), valid[1:].long()].mean().item()


# ----------------------------------------------------------------------------------------- model


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, x: (batch, heads, time, channels); arxiv.org/abs/2104.09864"""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Block(nn.Module):
    """Attention, then a perceptron, each added to the stream; both start as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for weight in (self.qkv.weight, self.up.weight):
            nn.init.normal_(weight, std=width**-0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x: (batch, time, width)
        n, t, w = x.shape
        q, k, v = self.qkv(norm(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, w))
        thought: Tensor = self.down(F.relu(self.up(norm(x))).square())
        return x + thought


class GPT(nn.Module):
    """Byte-level GPT; with the default sizes 0.88 M parameters."""

    cos: Tensor
    sin: Tensor

    def __init__(self, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.here = nn.Embedding(BYTES, width)
        # The byte before gets an embedding of its own: pairs of bytes are then known from the
        # first step on, which a few hundred steps of training cannot find by attention.
        self.before = nn.Embedding(BYTES, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, BYTES, bias=False)
        nn.init.zeros_(self.head.weight)
        half = width // heads // 2
        angle = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (batch, time) bytes -> (batch, time, BYTES) logits
        t = x.size(1)
        h = norm(self.here(x) + F.pad(self.before(x[:, :-1]), (0, 0, 1, 0)))
        for block in self.blocks:
            h = block(h, self.cos[:t], self.sin[:t])
        logits: Tensor = self.head(norm(h))
        return logits


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, nats per byte."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


# --------------------------------------------------------------------------------------- training


class Metrics:
    """One JSON object a line: what happened to this worker and when. Without a folder: nothing."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.about = {"worker": name, "pid": os.getpid()}
        self.file: TextIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = (folder / f"{name}-{os.getpid()}.jsonl").open("a", buffering=1)

    def write(self, event: str, **values: object) -> None:
        if self.file is not None:
            line = {"event": event, "time": time.time(), **self.about, **values}
            self.file.write(json.dumps(line) + "\n")


@torch.no_grad()
def evaluate(model: nn.Module, valid: Tensor, batches: int, context: int) -> float:
    """Loss on the same windows of the validation text for whoever asks, nats per byte."""
    rng = torch.Generator().manual_seed(0)
    losses = [loss_of(model, *windows(valid, 16, context, rng)).item() for _ in range(batches)]
    return sum(losses) / len(losses)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # workers share the machine's cores
    train_text, valid_text = load_text(args.data)
    torch.manual_seed(args.seed)
    model = GPT(args.layers, args.width, args.heads, args.context)
    inner = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))

    # Everything slow is done by now: from its admission on the other members wait for a newcomer.
    with pccl.join(name=args.name, min_members=args.min_members) as comm:  # pccl
        name = comm.members[comm.rank].name
        metrics = Metrics(args.metrics, name)
        outer = DiLoCo(model, comm, args.inner_steps, args.outer_lr, args.momentum)  # pccl
        metrics.write(
            "joined", epoch=comm.epoch, rank=comm.rank, world=comm.world_size, round=outer.round
        )
        print(f"joined as rank {comm.rank} of {comm.world_size} at round {outer.round}")
        if comm.rank == 0 and outer.round == 0:
            valid_loss = evaluate(model, valid_text, args.eval_batches, args.context)
            metrics.write("evaluated", round=0, valid_loss=valid_loss)
            print(f"round 0: validation loss {valid_loss:.3f} nats per byte")

        # Each life of each worker reads other windows of the text.
        life = f"{args.seed} {name} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        rng = torch.Generator().manual_seed(zlib.crc32(life.encode()))
        steps, began, first = 0, time.time(), False
        while outer.round < args.rounds:
            # Warm up after every join, as Adam's averages begin empty; decay with the run's round.
            warm = min(1.0, (steps + 1) / args.warm_up)
            for group in inner.param_groups:
                group["lr"] = args.lr * warm * (1 - 0.9 * outer.round / args.rounds)
            loss = loss_of(model, *windows(train_text, args.batch, args.context, rng))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            inner.step()
            inner.zero_grad()
            steps += 1
            if outer.inner_step == args.inner_steps - 1:
                metrics.write("reducing", round=outer.round)
                first = comm.rank == 0  # asked now: ranks move as soon as members leave
            done = outer.step()  # pccl
            if done is not None:
                info, now = done.reduce, time.time()
                metrics.write(
                    "round", round=done.round, loss=loss.item(), seconds=now - began,
                    reduce_s=info.seconds, bytes_sent=info.bytes_sent, epoch=comm.epoch,
                    world=done.world_size, contributors_min=info.contributors_min,
                    contributors_max=info.contributors_max, repaired=info.repaired,
                    digest=outer.digest(),
                )  # fmt: skip
                print(
                    f"round {done.round}/{args.rounds}: loss {loss.item():.3f}, "
                    f"{now - began:.1f} s, {done.world_size} members"
                )
                began = now
        digest = outer.digest()

    metrics.write("left", round=outer.round, digest=digest)
    # The members' models now hold the outer parameters, the same bits everywhere: one tests them.
    print(f"done at round {outer.round}, state {digest}")
    if first:
        valid_loss = evaluate(model, valid_text, args.eval_batches, args.context)
        bigram = bigram_loss(train_text, valid_text)
        metrics.write("evaluated", round=outer.round, valid_loss=valid_loss, bigram_loss=bigram)
        print(f"validation loss {valid_loss:.3f} nats per byte, byte bigrams {bigram:.3f}")
        if args.out is not None:
            torch.save(outer.state_dict(), args.out)


def arguments(argv: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--data", type=Path, help="text to learn: a file or a folder (the standard library)")
    add("--rounds", type=int, default=30, help="outer rounds of the whole run (%(default)s)")
    add("--inner-steps", type=int, default=10, help="steps between two rounds (%(default)s)")
    add("--batch", type=int, default=8, help="pieces of text per step (%(default)s)")
    add("--lr", type=float, default=3e-3, help="of AdamW, the inner optimizer (%(default)s)")
    add("--outer-lr", type=float, default=0.7, help="of Nesterov, the outer one (%(default)s)")
    # 0.9, the papers' value, overshoots for its first hundreds of rounds when it starts untrained.
    add("--momentum", type=float, default=0.5, help="of Nesterov, the outer one (%(default)s)")
    add("--warm-up", type=int, default=50, help="steps from lr 0 after a join (%(default)s)")
    add("--layers", type=int, default=4)
    add("--width", type=int, default=128)
    add("--heads", type=int, default=4)
    add("--context", type=int, default=128, help="bytes of text per piece (%(default)s)")
    add("--eval-batches", type=int, default=8, help="of 16 pieces (%(default)s)")
    add("--seed", type=int, default=0)
    add("--name", help="in the run's list of members (the launcher's name for the worker)")
    add(
        "--min-members",
        type=int,
        default=int(os.environ.get("WORLD_SIZE", "1")),
        help="begin when so many are there (all that the launcher started)",
    )
    add("--metrics", type=Path, help="folder for one JSON-lines file per worker")
    add("--out", type=Path, help="file for the outer state (parameters, momentum, round)")
    return parser.parse_args(None if argv is None else list(argv))


def main() -> int:
    try:
        train(arguments())
    except (pccl.PcclError, OSError) as error:
        print(f"train_gpt: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
