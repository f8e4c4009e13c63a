"""Questions to etcd's JSON gateway, each over a connection of its own (layer 4).

`etcd_store` asks; nothing here knows what. HTTP/1.0, so that an answer ends with its connection and
needs no reading of chunks; every question has a time and every answer a size.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pccl_py.errors import RemoteProtocolError, ResourceError, UsageError
from pccl_py.protocol.encoding import printable

ANSWER_BYTES_MAX = 4 << 20
URLS_MAX = 16
_DEFAULT_PORT = 2379


class Away(ResourceError):
    """No etcd answered in time, or it cannot do now what was asked. What was asked may have been
    done all the same."""


@dataclass(frozen=True, slots=True)
class Url:
    """Where an etcd listens for clients."""

    host: str
    port: int
    is_tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}"


def parse_urls(text: str) -> tuple[Url, ...]:
    """URLs separated by commas. Raises UsageError, one line."""
    urls = tuple(_parse(part.strip()) for part in text.split(","))
    if len(urls) > URLS_MAX:
        raise UsageError(f"--etcd {text}: at most {URLS_MAX} URLs")
    return urls


def _parse(text: str) -> Url:
    wrong = f"--etcd {text!r} must be http://HOST:PORT or https://HOST:PORT, several with commas"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(wrong) from None
    plain = not (parts.query or parts.fragment or parts.username) and parts.path in ("", "/")
    if parts.scheme not in ("http", "https") or not host or not plain or not host.isascii():
        raise UsageError(wrong)
    return Url(host, _DEFAULT_PORT if port is None else port, parts.scheme == "https")


class Etcd:
    """One etcd, at any of its URLs; the one that answered last is asked first."""

    def __init__(self, urls: tuple[Url, ...], timeout_s: float) -> None:
        """timeout_s: for an answer, all URLs together."""
        self._urls = list(urls)
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if any(url.is_tls for url in urls) else None

    def __str__(self) -> str:
        return ",".join(str(url) for url in sorted(self._urls, key=str))

    async def ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        """The answer. Raises Away, RemoteProtocolError (that is no etcd)."""
        data = json.dumps(body).encode()
        until = time.monotonic() + self._timeout_s
        said: list[str] = []
        wrong: RemoteProtocolError | None = None
        for at, url in enumerate(tuple(self._urls)):
            share_s = max(0.05, (until - time.monotonic()) / (len(self._urls) - at))
            try:
                async with asyncio.timeout(share_s):
                    answer = await self._exchange(url, path, data)
                found = _read(url, answer)
            except TimeoutError:
                said.append(f"{url}: no answer in {share_s:.1f} s")
            except OSError as error:  # Away is one, with words of its own
                said.append(f"{url}: {printable(error.strerror or str(error))}")
            except RemoteProtocolError as error:
                wrong = error
            else:
                self._urls.remove(url)
                self._urls.insert(0, url)
                return found
        if wrong is not None:
            raise wrong
        raise Away(None, f"etcd cannot be asked ({'; '.join(said)})")

    async def _exchange(self, url: Url, path: str, data: bytes) -> bytes:
        """The raw answer, up to ANSWER_BYTES_MAX and one byte more."""
        tls = self._tls if url.is_tls else None
        reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
        try:
            head = (
                f"POST {path} HTTP/1.0\r\nHost: {url.host}:{url.port}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            writer.write(head.encode() + data)
            parts = []
            left = ANSWER_BYTES_MAX + 1
            while left > 0 and (part := await reader.read(min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        finally:
            writer.close()


def _read(url: Url, answer: bytes) -> Mapping[str, object]:
    """The body. Raises Away (etcd says that it cannot), RemoteProtocolError."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
    if not answer:
        raise Away(None, "it closed the connection without an answer")
    try:
        # A stream's answers stand in lines of their own; one is all that is asked for.
        found = json.loads(body.strip().partition(b"\n")[0])
    except (ValueError, RecursionError):
        found = None
    if status is None or not isinstance(found, dict) or len(answer) > ANSWER_BYTES_MAX:
        raise RemoteProtocolError(
            f"{url} does not answer as etcd does: is that its client URL, and it etcd 3.4 or later?"
        )
    error = found.get("error")
    if error is None and status[1] == b"200":
        return found
    if isinstance(error, dict):  # of a stream
        error = error.get("message")
    raise Away(None, f"etcd says: {printable(str(error))[:300]}")
