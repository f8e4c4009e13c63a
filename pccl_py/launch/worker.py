"""What each Python worker of `pccl run` is started as: SIGTERM means finish, leave, exit with 0.

Run by path (`python worker.py SCRIPT …` or `python worker.py -m MODULE …`), never imported by us.
It installs a handler for SIGTERM, which the library never does, and becomes the script. The handler
raises SystemExit(0) where the program stands, as Ctrl-C raises KeyboardInterrupt: a wait for an op
is given up but the op goes on, `finally` blocks run, and leaving - by the `with` block, else here -
waits for it. A program that installs a handler of its own has that instead.
"""

from __future__ import annotations

import io
import os
import pkgutil
import runpy
import signal
import sys
import types


def main(argv: list[str]) -> None:
    """argv: the script, or `-m` and the module, and their arguments. Ends as they do."""
    drains = False

    def drain(signum: int, frame: types.FrameType | None) -> None:
        nonlocal drains
        drains = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough; the impatient have SIGKILL
        raise SystemExit(0)

    def in_child() -> None:
        if signal.getsignal(signal.SIGTERM) is drain:  # a DataLoader's child is no member
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, drain)
        os.register_at_fork(after_in_child=in_child)
    try:
        if argv[0] == "-m":
            _become_module(argv[1:])
        else:
            _become_script(argv)
    finally:
        if drains:
            _leave()


def _leave() -> None:
    """What the script has joined and not left, it leaves now."""
    forks = sys.modules.get("pccl_py.forks")  # not imported: then nothing was joined
    for communicator in [] if forks is None else forks.living():
        communicator.leave()


def _become_module(argv: list[str]) -> None:
    sys.argv = argv
    _first_path(os.getcwd())
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _become_script(argv: list[str]) -> None:
    """As `python SCRIPT` would: the same `__main__`, arguments and path. Not by runpy, whose
    `__main__` ends with the script, before its threads and exit handlers."""
    sys.argv = argv
    script = os.path.abspath(argv[0])
    if os.path.isdir(script):
        _first_path(script)
        script = os.path.join(script, "__main__.py")
    elif pkgutil.get_importer(script) is not None:  # a zip file
        sys.path.pop(0)
        runpy.run_path(script, run_name="__main__")
        return
    else:
        _first_path(os.path.dirname(os.path.realpath(script)))
    with io.open_code(script) as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=__builtins__, __cached__=None)
    sys.modules["pccl_py.launch.worker"] = sys.modules["__main__"]  # it must outlive the script
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _first_path(path: str) -> None:
    """Where the script's own modules are, in place of where this one is."""
    if not sys.flags.safe_path:
        sys.path[0] = path


if __name__ == "__main__":
    main(sys.argv[1:])
