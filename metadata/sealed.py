"""A JSON object beside its own digest: a damaged one is not there."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage

T = TypeVar("T")


@dataclass(frozen=True)
class Sealed:
    """A value, and the digest it had when it was stored."""

    digest: str
    value: dict[str, Any]


def put_sealed(folder: Storage, name: str, value: dict[str, Any], point: str, of: str = "") -> None:
    """Stores a value that JSON can hold; `of` is in its digest: another's is not read for it."""
    plain = json.loads(json.dumps(value))  # a number as a key becomes a string, and is sorted so
    text = json.dumps(vars(Sealed(_digest(plain, of), plain)))
    folder.put(name, text.encode(), point)


def read_sealed(folder: Storage, name: str, of: str = "") -> dict[str, Any] | None:
    """The value as it was stored; None where it is missing or any of it has changed."""
    held = folder.read_json(name, Sealed)
    return held.value if held and _digest(held.value, of) == held.digest else None


def _digest(value: dict[str, Any], of: str) -> str:
    return digest([of, value] if of else value)


def read_sealed_as(folder: Storage, name: str, kind: type[T]) -> T | None:
    """The same as an object of a kind; one that an older version stored without a digest, too."""
    held = folder.read_json(name, dict[str, Any])
    if held is not None and held.keys() == {"digest", "value"}:
        held = held["value"] if digest(held["value"]) == held["digest"] else None
    try:
        return None if held is None else msgspec.convert(held, kind)
    except msgspec.ValidationError:
        return None
