"""How a run is served, and what a server refuses to start with."""

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mope.config import MAX_PIXELS, MediaLimits
from mope.errors import UserError

LIMITS = (
    "megabytes",
    "pixels",
    "seconds",
    "characters",
    "rows",
    "queue",
    "batch",
    "connections",
    "address_connections",
    "header_bytes",
    "headers",
    "header_seconds",
    "body_seconds",
    "grace_seconds",
)
"""Settings that are numbers above 0."""

_TOKEN_LENGTH = 16
"""Characters that a token has at least where others can try some."""


_OF_AN_ADDRESS = 256
"""Connections of an address on another machine, unless something else is said."""


def network_of(host: str) -> str:
    """What connections are counted by: an address; of IPv6 its /64 network, all of which one client has."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # such as a test's
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServeSettings:
    """How a run is served.

    Attributes:
        host: name or address to listen at.
        port: 0 for any that is free.
        token: what callers must name; None for none, which only loopback may do without.
        tokens: or tokens of several callers, by the callers' names; each has queues and turns of its own, and
            `queue` rows in the works at most.
        page: whether there is a page for people.
        megabytes: largest body of a request, in 2**20 bytes.
        pixels: of an image, or of a video's frame.
        seconds: of audio or video.
        characters: of a text.
        rows: per request.
        queue: rows that wait for the model, of a run, where there are `tokens` of a run and a caller; of all
            together eight times as many.
        batch: rows per forward pass.
        connections: open at the same time.
        address_connections: of one client's address, of IPv6 of one /64 network; None for 256, but any number
            from this machine, where a proxy may speak for many.
        header_bytes: of a request's address and headers.
        headers: of a request.
        header_seconds: from a request's first byte, or the connection's, to the end of its headers.
        body_seconds: for a body, of which each 4,096 bytes give one back; and for an answer to be taken.
        grace_seconds: for requests that are there when the server is told to end.

    Raises:
        UserError: the values don't make a server.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    page: bool = True
    megabytes: float = MediaLimits().megabytes
    pixels: int = MediaLimits().pixels
    seconds: float = MediaLimits().seconds
    characters: int = 20_000
    rows: int = 64
    queue: int = 512
    batch: int = 32
    connections: int = 512
    address_connections: int | None = None
    header_bytes: int = 32_768
    headers: int = 100
    header_seconds: float = 10
    body_seconds: float = 20
    grace_seconds: float = 10

    def __post_init__(self):
        for token in self.callers.values():
            if not token.strip():
                raise UserError("The token is empty: give one with --token, or leave it out.")
            if not all("!" <= character <= "~" for character in token):
                raise UserError("The token has blanks or letters that headers don't carry: take others.")
        if len(set(self.callers.values())) < len(self.callers):
            raise UserError("Two callers have the same token: give each one of its own.")
        if not is_loopback(self.host):
            self._check_token()
        for name in LIMITS:
            if (value := getattr(self, name)) is None:
                continue
            if not value > 0:
                raise UserError(f"--{flag(name)} is {value}: it must be above 0.")
            if not math.isfinite(value):
                raise UserError(f"--{flag(name)} is a number that ends: inf isn't one.")
        if self.pixels > MAX_PIXELS:
            raise UserError(f"--max-pixels is {self.pixels}: at most {MAX_PIXELS} are decoded.")
        if self.queue < self.rows:
            raise UserError(
                f"--max-queue is {self.queue}, less than the {self.rows} rows that a request may have."
            )
        if not 0 <= self.port < 65536:
            raise UserError(f"There is no port {self.port}: the last one is 65535.")

    def _check_token(self) -> None:
        if not self.callers:
            raise UserError(
                f"Others can reach this machine at '{self.host}': give --token TOKEN, or leave --host out."
            )
        shortest = min(map(len, self.callers.values()))
        if shortest < _TOKEN_LENGTH:
            raise UserError(
                f"Others can reach this machine at '{self.host}', and could guess a token of "
                f"{shortest} characters: take {_TOKEN_LENGTH} or more, as by `openssl rand -hex 16`."
            )

    @property
    def callers(self) -> dict[str, str]:
        """Tokens by the names of who has them; none where none is needed."""
        return {**({} if self.token is None else {"the token": self.token}), **self.tokens}

    @cached_property
    def media(self) -> MediaLimits:
        """The limits of a request's media, which untrusted tables have as well."""
        return MediaLimits(megabytes=self.megabytes, pixels=self.pixels, seconds=self.seconds)

    def connections_of(self, network: str) -> int | None:
        """How many connections an address may have open, see `network_of`; None for any number."""
        if self.address_connections is not None:
            return self.address_connections
        return None if is_loopback(network) else _OF_AN_ADDRESS

    @property
    def bytes(self) -> int:
        """Largest body of a request."""
        return int(self.megabytes * 2**20)


def flag(name: str) -> str:
    """The flag of a setting, without its dashes."""
    return "batch-size" if name == "batch" else f"max-{name.replace('_', '-')}"


def read_tokens(file: str) -> dict[str, str]:
    """Tokens by the names of who has them, of a file with a line `NAME TOKEN` for each.

    Raises:
        UserError: it can't be read, or a line is another.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Can't read the tokens in {file}: {getattr(error, 'strerror', error)}.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words and (len(words) != 2 or words[0] in found):
            raise UserError(f"{file}, line {number}: a line is NAME TOKEN, each name once.")
        found |= dict([words]) if words else {}
    if not found:
        raise UserError(f"{file} has no tokens: write a line NAME TOKEN for each caller.")
    return found
