"""Fingerprints: a short digest of all that a stage's results depend on.

It covers stage, version, settings and the parents' fingerprints; never masks, the bytes at a path
or the number of workers. Settings declared with `location()` (where or how fast) stay out; those
declared with `later()` count only when they are not at their default.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clipmill.metadata.keys import without_keys


def digest(value: Any) -> str:
    """Returns 128 bits of the SHA-256 of a JSON value in canonical form, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def settings_of(stage: Any) -> dict[str, Any]:
    """Returns the fingerprinted settings of a stage as JSON."""
    return {
        field.name: plain(getattr(stage, field.name))
        for field in dataclasses.fields(stage)
        if _counts(field, getattr(stage, field.name))
    }


def _counts(field: Any, value: Any) -> bool:
    rule = field.metadata.get("fingerprint", True)
    return bool(value != field.default if rule == "unless default" else rule)


def plain(value: Any) -> Any:
    """Returns a setting as JSON: tuples as lists, nested settings as objects, URIs without keys."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return settings_of(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return without_keys(value) if isinstance(value, str) else value


def fingerprint(
    uses: str, version: int, settings: Mapping[str, Any], parents: Mapping[str, Any]
) -> str:
    """Returns 12 hex digits that name a stage's folder. Parents: edge or column to fingerprint."""
    whole = {"uses": uses, "version": version, "settings": settings, "parents": parents}
    return digest(whole)[:12]
