"""Stores JSON objects with their digest; a damaged one reads as missing."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage

T = TypeVar("T")


@dataclass(frozen=True)
class Sealed:
    """A value and its digest when stored."""

    digest: str
    value: dict[str, Any]


def put_sealed(folder: Storage, name: str, value: dict[str, Any], point: str, of: str = "") -> None:
    """Stores a JSON value with its digest; reading it takes the same `of`."""
    plain = json.loads(json.dumps(value))  # numeric keys become strings, and are sorted as such
    text = json.dumps(vars(Sealed(_digest(plain, of), plain)))
    folder.put(name, text.encode(), point)


def read_sealed(folder: Storage, name: str, of: str = "") -> dict[str, Any] | None:
    """Returns the value; None if it is missing or has changed."""
    stored = folder.read_json(name, Sealed)
    return stored.value if stored and _digest(stored.value, of) == stored.digest else None


def _digest(value: dict[str, Any], of: str) -> str:
    return digest([of, value] if of else value)


def read_sealed_as(folder: Storage, name: str, kind: type[T]) -> T | None:
    """Returns the value as a `kind`, or None; reads older values without a digest, too."""
    value = folder.read_json(name, dict[str, Any])
    if value is not None and value.keys() == {"digest", "value"}:
        value = value["value"] if digest(value["value"]) == value["digest"] else None
    try:
        return None if value is None else msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None
