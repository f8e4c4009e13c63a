"""Twin of pccl_py.config."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pccl_py import config
from pccl_py.errors import ResourceError, UsageError


def test_argument_goes_before_environment_before_default() -> None:
    environ = {"PCCL_RUN": "from-env", "PCCL_GROUP": "from-env", "PCCL_CHECKSUM": "FULL"}
    settings = config.resolve(run="from-argument", environ=environ)
    assert settings.run == "from-argument"
    assert settings.group == "from-env"
    assert settings.checksum == "full"
    assert settings.coordinator == config.DEFAULT_COORDINATOR
    assert settings.given == {"run", "group", "checksum"}


def test_empty_environment_value_counts_as_unset() -> None:
    environ = {"PCCL_RUN": "", "PCCL_SECRET": "", "PCCL_SECRET_FILE": "", "PCCL_LOG_LEVEL": ""}
    assert config.resolve(environ=environ) == config.Settings()


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_RUN", "here")
    assert config.resolve().run == "here"


def test_secret_from_argument_environment_and_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"of-file\n")
    from_file = {"PCCL_SECRET_FILE": str(path)}
    assert config.resolve(environ=from_file).secret == b"of-file"
    assert config.resolve(environ=from_file | {"PCCL_SECRET": "s"}).secret == b"s"
    assert config.resolve(secret="a", environ=from_file).secret == b"a"


def test_secret_is_not_in_the_repr() -> None:
    assert "hush" not in repr(config.resolve(secret="hush", environ={}))


def test_unreadable_secret_file_keeps_errno(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="PCCL_SECRET_FILE") as caught:
        config.resolve(environ={"PCCL_SECRET_FILE": str(tmp_path / "absent")})
    assert caught.value.errno == 2


@pytest.mark.parametrize(
    "environ", [{"PCCL_LOG_LEVEL": "loud"}, {"PCCL_CHECKSUM": "none"}, {"PCCL_SECRET": "x" * 5000}]
)
def test_impossible_values_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        config.resolve(environ=environ)


def test_empty_secret_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\n")
    with pytest.raises(UsageError, match="empty"):
        config.resolve(environ={"PCCL_SECRET_FILE": str(path)})


def test_timers_follow_from_the_deadline() -> None:
    assert (config.Timers().detection_s, config.Timers().heartbeat_s) == (5.0, 1.0)
    assert config.Timers(2.0).detection_s == 0.5
    assert config.Timers(2.0).heartbeat_s == 0.1


def test_a_deadline_too_short_for_its_heartbeats_is_refused() -> None:
    assert config.Timers(0.4).detection_s == 0.1
    with pytest.raises(UsageError, match=r"deadline_s=0.39 is too short: .* 0.4 is needed"):
        config.Timers(0.39)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_deadlines_are_refused(deadline_s: float) -> None:
    with pytest.raises(UsageError, match="deadline_s"):
        config.Timers(deadline_s)
