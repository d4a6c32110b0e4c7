"""Pins the digests of bytes from outside the run, such as weights, at first use.

A recipe only names weights: `open_clip:ViT-B-32@file.pt` may be another file tomorrow, and half a
column would come from each. A stage's folder has each pin twice: a damaged or missing one is
restored from the other.
"""

from collections.abc import Iterable, Iterator

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.fingerprint import digest
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError

PINS, COPIES = "pins", "pins-copy"


def pin(folder: Storage, stage: str, what: str, sha256: str) -> None:
    """Stores the digest at first use; later raises StageError if it has changed."""
    name = f"{digest(what)[:12]}.json"
    where = f"stage '{stage}', {folder}/{PINS}/{name}"
    if not any(folder.has(f"{place}/{name}") for place in (PINS, COPIES)):
        _put(folder, name, {"what": what, "sha256": sha256}, (PINS, COPIES))
    pinned = _mended(folder, name)  # if two workers write at once, both read the last one's
    if pinned is None:
        raise StageError(
            found=f"the digest that {what} had at first use cannot be read",
            where=where,
            do=f"delete that file and its copy in {COPIES} if the bytes are still the same, or use"
            " another --out",
        )
    if pinned != sha256:
        raise StageError(
            found=f"{what} has digest {sha256[:12]}, and had {pinned[:12]} at first use",
            where=where,
            do="bring the former bytes back, give these another name, or use another --out",
        )


def wrong_pins(folder: Storage) -> Iterator[DamagedError]:
    """Yields the pins of a stage's folder, and copies, that are missing or damaged."""
    copied = _names(folder, COPIES)
    for name in sorted(_names(folder, PINS) | copied):
        for place in (PINS, *([COPIES] if name in copied else [])):  # older runs have no copy
            if not folder.has(f"{place}/{name}"):
                yield DamagedError(folder.uri, f"{place}/{name}", "it is gone")
            elif _read(folder, f"{place}/{name}") is None:
                yield DamagedError(folder.uri, f"{place}/{name}", "not as it was stored")


def mend_pins(folder: Storage) -> None:
    """Restores each pin from its copy or the reverse; deletes both if neither can be read."""
    for name in _names(folder, PINS) | _names(folder, COPIES):
        if _mended(folder, name) is None:
            for place in (PINS, COPIES):
                folder.delete(f"{place}/{name}")


def _mended(folder: Storage, name: str) -> str | None:
    """Returns a pin's digest, from the pin or its copy; restores the unreadable one."""
    stored = {place: _read(folder, f"{place}/{name}") for place in (PINS, COPIES)}
    known = stored[PINS] or stored[COPIES]
    if known is not None:
        _put(folder, name, known, [place for place, pinned in stored.items() if pinned is None])
    return None if known is None else known["sha256"]


def _put(folder: Storage, name: str, pinned: dict[str, str], places: Iterable[str]) -> None:
    for place in places:
        put_sealed(folder, f"{place}/{name}", pinned, point="pin" if place == PINS else "pin-copy")


def _read(folder: Storage, name: str) -> dict[str, str] | None:
    """Reads a pin, before 0.2 without a seal; None if it is missing, damaged or misnamed."""
    pinned = read_sealed(folder, name) or folder.read_json(name, dict[str, str]) or {}
    if pinned.keys() != {"what", "sha256"}:
        return None
    return pinned if name.endswith(f"/{digest(pinned['what'])[:12]}.json") else None


def _names(folder: Storage, place: str) -> set[str]:
    names = (entry.name for entry in folder.entries(place))
    return {name for name in names if name[0] != "."}  # `.DS_Store`, of a file manager
