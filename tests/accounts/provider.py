"""An OpenID Connect provider on the loopback that says what a test wants, with real keys, and remembers what was asked.

What a provider of flesh and blood does is tested with one: ``tests/clients/test_oidc.py``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

CLIENT_ID = "hypha lab"

_KINDS: dict[str, tuple[Callable[[], Any], Any]] = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "short": (lambda: rsa.generate_private_key(65537, 1024), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


def private(kind: str = "RS256", number: int = 0) -> Any:
    """A private key; others by *number*."""
    return _made(kind, number)


@cache
def _made(kind: str, number: int) -> Any:
    return _KINDS[kind][0]()


def public(kid: str | None = "one", kind: str = "RS256", number: int = 0, **more: str) -> dict[str, Any]:
    """Its public half, as a provider shows it."""
    text = _KINDS[kind][1].to_jwk(private(kind, number).public_key(), as_dict=True)
    return {**text, "use": "sig", **({} if kid is None else {"kid": kid}), **more}


def signed(claims: dict[str, Any], kid: str | None = "one", algorithm: str = "RS256", key: Any = None) -> str:
    """An ID token, signed with the first key or with another one."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, private() if key is None else key, algorithm, headers)


def claims_for(issuer: str, nonce: str, now: float, /, **more: Any) -> dict[str, Any]:
    """What a provider says of Ada. *more* replaces parts; None takes them away."""
    found = {"iss": issuer, "sub": "ada-1", "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce, **more}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Asked:
    """A request that has come."""

    line: str
    headers: dict[str, str]
    form: dict[str, str]


Reply = Callable[[], Awaitable[tuple[int, bytes]]]


@dataclass(eq=False)
class Provider:
    """It signs everybody in as *says* says. *replies* takes the place of what it answers at a path."""

    issuer: str
    clock: Callable[[], float]
    says: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=lambda: [public()])
    token: dict[str, Any] = field(default_factory=dict)
    userinfo: dict[str, Any] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    #: What it has given out, with the nonce of each.
    codes: dict[str, str] = field(default_factory=dict)

    def visited(self, address: str) -> str:
        """A browser comes to *address*, and somebody signs in: the query with which it goes back."""
        query = dict(parse_qsl(urlsplit(address).query))
        code = f"code-{len(self.codes)}"
        self.codes[code] = query["nonce"]
        return urlencode({"code": code, "state": query["state"], "iss": self.issuer})

    def count(self, path: str) -> int:
        """How often *path* was asked for."""
        return sum(1 for item in self.asked if item.line.split()[1] == path)

    def answers(self, path: str, status: int, body: bytes | dict[str, Any]) -> None:
        """Answer that at *path* from now on."""

        async def reply() -> tuple[int, bytes]:
            return status, body if isinstance(body, bytes) else json.dumps(body).encode()

        self.replies[path] = reply

    async def serve(self, stream: trio.SocketStream) -> None:
        """One request."""
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some(65536)
            head, _, body = head.partition(b"\r\n\r\n")
            line, *rest = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (item.partition(": ") for item in rest)}
            while len(body) < int(headers.get("content-length", "0")):
                body += await stream.receive_some(65536)
            self.asked.append(Asked(line, headers, dict(parse_qsl(body.decode()))))
            status, text = await self._reply(line.split()[1], self.asked[-1])
            told = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nLocation: {self.issuer}/elsewhere\r\n"
            with suppress(trio.BrokenResourceError):  # it may have heard enough
                await stream.send_all(f"{told}Content-Length: {len(text)}\r\n\r\n".encode() + text)

    async def _reply(self, path: str, asked: Asked) -> tuple[int, bytes]:
        if path in self.replies:
            return await self.replies[path]()
        documents: dict[str, Callable[[], dict[str, Any]]] = {
            "/.well-known/openid-configuration": self._document,
            "/keys": lambda: {"keys": self.keys},
            "/token": lambda: self._token(asked.form.get("code", "")),
            "/me": lambda: self.userinfo,
        }
        return (200, json.dumps(documents[path]()).encode()) if path in documents else (404, b"{}")

    def _document(self) -> dict[str, Any]:
        places = {"authorization": "authorize", "token": "token", "userinfo": "me"}
        return {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/keys",
            **{f"{name}_endpoint": f"{self.issuer}/{path}" for name, path in places.items()},
            **self.document,
        }

    def _token(self, code: str) -> dict[str, Any]:
        claims = claims_for(self.issuer, self.codes.get(code, ""), self.clock(), **self.says)
        return {"id_token": signed(claims), "access_token": "access-1", "token_type": "Bearer", **self.token}


@asynccontextmanager
async def provider(clock: Callable[[], float]) -> AsyncIterator[Provider]:
    """A provider that is open in the block."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    running = Provider(f"http://127.0.0.1:{port}", clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, running.serve, [listener])
        yield running
        nursery.cancel_scope.cancel()
