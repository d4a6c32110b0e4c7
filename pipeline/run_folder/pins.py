"""Bytes that a stage reads from outside the run must keep the digest they had at first use.

Weights have a name in the recipe and bytes elsewhere: `open_clip:ViT-B-32@file.pt` may be another
file tomorrow, and half a column would be of either. A stage's folder keeps the digest.
"""

import json
from dataclasses import asdict, dataclass

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError

PINS = "pins"


@dataclass(frozen=True)
class Pin:
    """What `pins/<digest of what>.json` holds."""

    what: str
    sha256: str


def pin(folder: Storage, stage: str, what: str, sha256: str) -> None:
    """Writes the digest down at first use; StageError where it was another one then."""
    name = f"{PINS}/{digest(what)[:12]}.json"
    where = f"stage '{stage}', {folder}/{name}"
    if not folder.has(name):
        text = json.dumps(asdict(Pin(what, sha256)))
        folder.put(name, text.encode(), point="pin")
    pinned = folder.read_json(name, Pin)  # of two workers that write at once, one
    if pinned is None:
        raise StageError(
            found=f"the digest that {what} had at first use cannot be read",
            where=where,
            do="delete that file if the bytes are still the same, or use another --out",
        )
    if pinned.sha256 != sha256:
        raise StageError(
            found=f"{what} has digest {sha256[:12]}, and had {pinned.sha256[:12]} at first use",
            where=where,
            do="bring the former bytes back, give these another name, or use another --out",
        )
