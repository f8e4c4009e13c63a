"""The first lines of a Python worker: it is the script, but for SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pccl_py.launch.process import PYTHON_WORKER

ROOT = Path(__file__).resolve().parents[2]
TELL = """
import json, sys, helper
print(json.dumps([sys.argv, sys.path[0], __name__, helper.WHERE,
                  sys.modules["__main__"].__dict__ is globals(), vars().get("__file__")]))
"""
SPAWN = """
import multiprocessing, pickle, signal
class Thing:
    pass
def double(x):
    return 2 * x, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
if __name__ == "__main__":
    assert type(pickle.loads(pickle.dumps(Thing()))) is Thing
    for how in ("spawn", "fork"):
        with multiprocessing.get_context(how).Pool(1) as pool:
            print(pool.apply(double, (21,)))
"""


def run(
    *words: str, cwd: Path, before: tuple[str, ...] = PYTHON_WORKER
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*before, *words], capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=env
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A script with a module of its own, the same as a package, and as a folder."""
    for place in (tmp_path / "scripts", tmp_path / "package", tmp_path / "folder"):
        place.mkdir()
        (place / "helper.py").write_text("WHERE = __file__")
    (tmp_path / "helper.py").write_text("WHERE = __file__")
    (tmp_path / "scripts" / "tell.py").write_text(TELL)
    (tmp_path / "tell.py").symlink_to(tmp_path / "scripts" / "tell.py")
    (tmp_path / "package" / "tell.py").write_text(TELL)
    (tmp_path / "folder" / "__main__.py").write_text(TELL)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [("scripts/tell.py", "-x", "a b"), ("tell.py",), ("-m", "package.tell", "7"), ("folder",)],
    ids=lambda words: words[0],
)
def test_the_script_sees_what_python_shows_it(folder: Path, words: tuple[str, ...]) -> None:
    plain = run(*words, cwd=folder, before=(sys.executable,))
    assert plain.returncode == 0, plain.stderr
    ours = run(*words, cwd=folder)
    assert ours.stdout == plain.stdout, ours.stderr


def test_pickles_and_children_work_and_children_have_no_handler(tmp_path: Path) -> None:
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = run("spawn.py", cwd=tmp_path)
    assert done.stdout.splitlines() == ["(42, True)"] * 2, done.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("import os; os._exit(9)", 9),
        ("x = (", 1),
        ("", 0),
    ],
)
def test_its_end_is_the_worker_s(tmp_path: Path, code: str, status: int) -> None:
    (tmp_path / "s.py").write_text(code)
    assert run("s.py", cwd=tmp_path).returncode == status


TERMINATE = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)"


@pytest.mark.parametrize(
    ("code", "out", "status"),
    [
        (f"try:\n  {TERMINATE}\n  print('on')\nfinally: print('finally')", "finally", 0),
        (f"try:\n  {TERMINATE}\nexcept SystemExit:\n  {TERMINATE}\n  print('once')", "once", 0),
        (
            "import signal\n"
            "signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n" + TERMINATE,
            "mine",
            0,
        ),
        (f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n{TERMINATE}", "", -15),
    ],
    ids=["ends", "once", "own handler", "default"],
)
def test_sigterm_ends_it_well_unless_it_says_otherwise(
    tmp_path: Path, code: str, out: str, status: int
) -> None:
    (tmp_path / "s.py").write_text(code)
    done = run("s.py", cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == (out, status), done.stderr


def test_an_ignored_sigterm_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text(f"{TERMINATE}\nprint('on')")
    shell = ("sh", "-c", 'trap "" TERM; exec "$@"', "sh", *PYTHON_WORKER)
    assert run("s.py", cwd=tmp_path, before=shell).stdout == "on\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "nothing of this is in the library"
