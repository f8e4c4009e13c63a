"""Settings: argument over environment over default (layer 0).

The only reader of the environment in the package; everything else receives values. Called by
`join`, the commands and the launcher. Opens the secret file and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pccl_py.errors import ResourceError, UsageError

DEFAULT_COORDINATOR = "127.0.0.1:48148"
DEFAULT_RUN = "default"
DEFAULT_GROUP = "default"
DEFAULT_DEADLINE_S = 600.0
DEADLINE_MIN_S = 0.4  # a quarter of it is 0.1 s, and libzmq tells silence in tenths of a second
DEADLINE_MAX_S = 30 * 86400.0
HANDSHAKE_MIN_S = 2.0
SECRET_BYTES_MAX = 4096
LOG_LEVELS = ("debug", "info", "warning", "error")
CHECKSUMS = ("auto", "full")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process was told. secret: the run secret or None. checksum: "auto" (payloads are
    checked between hosts, headers always) or "full". given: the names of those settings that came
    from an argument or the environment, not from a default."""

    coordinator: str = DEFAULT_COORDINATOR
    run: str = DEFAULT_RUN
    group: str = DEFAULT_GROUP
    secret: bytes | None = field(default=None, repr=False)
    log_level: str = "warning"
    checksum: str = "auto"
    given: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Timers:
    """The one deadline (seconds) and what follows from it. Raises UsageError unless it is from
    0.4 s to 30 days."""

    deadline_s: float = DEFAULT_DEADLINE_S

    def __post_init__(self) -> None:
        given = self.deadline_s
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        if not (is_number and 0.0 < given <= DEADLINE_MAX_S):
            text = "a number" if isinstance(given, int) and abs(given) > 1e18 else repr(given)
            raise UsageError(
                f"deadline_s={text} must be a number of seconds above 0 and at most "
                f"{DEADLINE_MAX_S:.0f} (30 days)"
            )
        if given < DEADLINE_MIN_S:
            raise UsageError(
                f"deadline_s={given!r} is too short: a silent member is looked for in a quarter of "
                f"it, with heartbeats of a twentieth; at least {DEADLINE_MIN_S:g} is needed"
            )

    @property
    def detection_s(self) -> float:
        """A silent peer is lost after this long."""
        return min(5.0, self.deadline_s / 4)

    @property
    def heartbeat_s(self) -> float:
        return self.detection_s / 5

    @property
    def silence_s(self) -> float:
        """A data link on which nothing was heard for so long is lost. Heartbeats come seven times
        as often. The rest of detection_s is for the coordinator and the next view."""
        return 0.7 * self.detection_s

    @property
    def handshake_s(self) -> float:
        """How long a data link may take to come up; time for a lost packet or two."""
        return max(HANDSHAKE_MIN_S, 0.8 * self.detection_s)


def default_name(environ: Mapping[str, str], host: str, pid: int) -> str:
    """What a peer is called when nobody says: w{RANK} under a launcher, else HOST-PID."""
    rank = environ.get("RANK", "")
    return f"w{int(rank)}" if rank.isascii() and rank.isdigit() else f"{host}-{pid}"


def environment() -> Mapping[str, str]:
    """This process's environment, copied: for `resolve`, and for starting child processes."""
    return dict(os.environ)


def resolve(
    *,
    coordinator: str | None = None,
    run: str | None = None,
    group: str | None = None,
    secret: str | bytes | None = None,
    log_level: str | None = None,
    checksum: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from arguments, then `environ` (default: the process's), then defaults.

    An empty environment value counts as unset. PCCL_SECRET goes before PCCL_SECRET_FILE.
    Raises UsageError (a value that cannot be), ResourceError (the secret file cannot be read).
    """
    env = environment() if environ is None else environ
    texts = {
        "coordinator": _first(coordinator, env, "PCCL_COORDINATOR"),
        "run": _first(run, env, "PCCL_RUN"),
        "group": _first(group, env, "PCCL_GROUP"),
        "log_level": _first(log_level, env, "PCCL_LOG_LEVEL"),
        "checksum": _first(checksum, env, "PCCL_CHECKSUM"),
    }
    key = _secret(secret, env)
    found = {name: text for name, text in texts.items() if text is not None}
    given = frozenset(found) | (frozenset() if key is None else frozenset({"secret"}))
    defaults = Settings()
    return Settings(
        coordinator=found.get("coordinator", defaults.coordinator),
        run=found.get("run", defaults.run),
        group=found.get("group", defaults.group),
        secret=key,
        log_level=_choice("PCCL_LOG_LEVEL", found.get("log_level"), LOG_LEVELS, "warning"),
        checksum=_choice("PCCL_CHECKSUM", found.get("checksum"), CHECKSUMS, "auto"),
        given=given,
    )


def _first(argument: str | None, environ: Mapping[str, str], name: str) -> str | None:
    return argument if argument is not None else environ.get(name) or None


def _choice(name: str, value: str | None, choices: tuple[str, ...], default: str) -> str:
    chosen = default if value is None else value.lower()
    if chosen not in choices:
        raise UsageError(f"{name}={value!r} must be one of {', '.join(choices)}")
    return chosen


def _secret(argument: str | bytes | None, environ: Mapping[str, str]) -> bytes | None:
    if argument is not None:
        if not isinstance(argument, str | bytes):
            raise UsageError(f"the secret argument must be str or bytes, not {type(argument)}")
        try:
            return _checked("the secret argument", os.fsencode(argument))
        except UnicodeEncodeError:
            raise UsageError(
                "the secret argument is no text that can be written as bytes"
            ) from None
    text = environ.get("PCCL_SECRET")
    if text:
        return _checked("PCCL_SECRET", os.fsencode(text))
    path = environ.get("PCCL_SECRET_FILE")
    return _checked(f"PCCL_SECRET_FILE={path}", _read_secret(path)) if path else None


def _read_secret(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(SECRET_BYTES_MAX + 2).rstrip(b"\r\n")
    except OSError as error:
        text = f"PCCL_SECRET_FILE={path} cannot be read: {error.strerror}"
        raise ResourceError(error.errno, text) from None


def _checked(source: str, secret: bytes) -> bytes:
    if not secret:
        raise UsageError(f"{source}: the run secret is empty")
    if b"\0" in secret:  # it could not be handed on in an environment
        raise UsageError(f"{source}: the run secret holds a zero byte")
    if len(secret) > SECRET_BYTES_MAX:
        raise UsageError(f"{source}: the run secret is over {SECRET_BYTES_MAX} bytes long")
    return secret
