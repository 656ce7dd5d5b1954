"""API keys: what is kept of them (a digest, a name, limits), read from a TOML file or a compact variable.

A key is 32 random bytes. Slow or salted hashes protect secrets that can be guessed; nobody guesses 256 bits,
so one SHA-256 does, and a request costs no more than that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import ConfigError
from service.gateway.caller import Caller
from service.jobs.allowance import Allowance

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_KEYS = 1000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"[0-9]{1,10}")
_PREFIX = "maskbit_"
_LONGEST_FIELD = 24

# Strict: TOML knows true and "600" too, which would become numbers.
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]


class ApiKey(BaseModel):
    """One tenant's keys and limits. Several digests let an old key and its successor overlap."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: tuple[str, ...] = Field(min_length=1, max_length=8)
    requests_per_minute: Count | None = None
    burst: Count | None = None
    images_per_day: Count | None = None
    concurrent_jobs: Count | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("1 to 64 of A-Z a-z 0-9 . _ - are allowed, the first a letter or digit")
        return name

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_several(cls, digests: Any) -> Any:
        return (digests,) if isinstance(digests, str) else digests

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, digests: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_DIGEST.fullmatch, digests)):
            raise ValueError("64 digits of 0-9 a-f are needed: the SHA-256 of the key, not the key")
        return digests

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> ApiKey:
        if self.burst is not None and self.requests_per_minute is None:
            raise ValueError("burst needs requests_per_minute")
        return self

    @property
    def caller(self) -> Caller:
        """Who comes with this key."""
        allowance = Allowance(self.requests_per_minute, self.burst, self.images_per_day)
        return Caller(self.name, self.concurrent_jobs, allowance)


@dataclass(frozen=True)
class KeySet:
    """All keys of one moment. Raises ConfigError: none or too many, or a name or digest that comes twice."""

    keys: tuple[ApiKey, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise ConfigError(f"there are {len(self.keys)} API keys; 1 to {MAX_KEYS} are allowed")
        for what, values in (("name", self._names()), ("sha256", self._digests())):
            if (twice := _repeated(values)) is not None:
                raise ConfigError(f"API key {twice!r}: its {what} is there twice")

    def _names(self) -> Iterator[tuple[str, str]]:
        return ((key.name, key.name) for key in self.keys)

    def _digests(self) -> Iterator[tuple[str, str]]:
        return ((digest, key.name) for key in self.keys for digest in key.sha256)

    def find(self, presented: str) -> Caller | None:
        """Who has the key `presented`. Takes as long for every key, right or wrong."""
        digest = digest_of(presented)
        found = None
        for key in self.keys:
            for one in key.sha256:
                if hmac.compare_digest(one, digest):
                    found = key
        return found.caller if found else None


def _repeated(values: Iterable[tuple[str, str]]) -> str | None:
    """The name that belongs to the first value that was there before."""
    seen = set()
    for value, name in values:
        if value in seen:
            return name
        seen.add(value)
    return None


def new_key() -> str:
    """A key that nobody has yet."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """SHA-256 of a key, hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_file(path: Path) -> list[ApiKey]:
    """The keys of a TOML file with a table `[keys.NAME]` for each. Raises ConfigError that says where."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"API keys: {path} cannot be read: {reason}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"API keys: {path} is not TOML: {exc}") from exc
    tables = tree.pop("keys", {})
    if tree or not isinstance(tables, dict):
        got = ", ".join(map(repr, tree)) or "a list or value called keys"
        raise ConfigError(f"API keys: {path} has {got}; allowed are tables [keys.NAME]")
    return [checked(f"{path}: [keys.{name}]", name, table) for name, table in tables.items()]


def read_compact(text: str) -> list[ApiKey]:
    """The keys of `NAME:SHA256[:FIELD=NUMBER]…`, several with commas or white space between. ConfigError."""
    keys = []
    for number, part in enumerate(re.split(r"[,\s]+", text.strip(", \n\t")), 1):
        name, *rest = part.split(":")
        if not rest:
            raise ConfigError(
                f"API keys: entry {number} of MASKBIT_API_KEYS is not NAME:SHA256[:FIELD=NUMBER]…"
            )
        fields = [("sha256", rest[0]), *(field.partition("=")[::2] for field in rest[1:])]
        if len(dict(fields)) < len(fields):
            raise ConfigError(f"API keys: entry {number} of MASKBIT_API_KEYS has a field twice")
        table = {field: value if field == "sha256" else _number(value) for field, value in fields}
        keys.append(checked(f"entry {number} of MASKBIT_API_KEYS", name, table))
    return keys


def _number(text: str) -> int | str:
    """`text` as a number, or as it is for the check that refuses it."""
    return int(text) if _COUNT.fullmatch(text) else text


def entry_of(key: ApiKey) -> str:
    """The table of a key as a file has it."""
    fields = key.model_dump(exclude={"name", "sha256"}, exclude_none=True)
    lines = [f"[keys.{key.name}]" if "." not in key.name else f'[keys."{key.name}"]']
    lines += [f'sha256 = "{key.sha256[0]}"', *(f"{field} = {value}" for field, value in fields.items())]
    return "\n".join(lines)


def checked(where: str, name: str, table: object) -> ApiKey:
    """The key that `table` describes. Raises ConfigError that says `where` and which field is wrong."""
    if not isinstance(table, Mapping) or "name" in table:
        raise ConfigError(f"API keys: {where} must be a table without a name of its own")
    try:
        return ApiKey(name=name, **table)
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ")
        # Never the value itself, nor a name as long as a key: it may be one, written in the wrong place.
        field = field if len(field) <= _LONGEST_FIELD else "a field"
        raise ConfigError(f"API keys: {where}: {field + ': ' if field else ''}{reason}") from None
