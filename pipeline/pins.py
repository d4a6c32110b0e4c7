"""What a stage reads from outside the run, held to the digest it had at first use.

Weights have a name in the recipe and bytes elsewhere: `open_clip:ViT-B-32@file.pt` may be another
file tomorrow, and half a column would be of either. A stage's folder keeps the digest.
"""

import json

from metadata.fingerprint import digest
from metadata.storage import Storage
from pipeline.errors import StageError

PINS = "pins"


def pin(folder: Storage, stage: str, what: str, sha256: str) -> None:
    """Writes the digest down at first use; StageError where it was another one then."""
    name = f"{PINS}/{digest(what)[:12]}.json"
    if folder.read_json(name) is None:
        text = json.dumps({"what": what, "sha256": sha256})
        folder.put(name, text.encode(), point="pin")
    held = folder.read_json(name)  # of two workers that write at once, one
    if held["sha256"] != sha256:
        raise StageError(
            found=f"{what} has digest {sha256[:12]}, and had {held['sha256'][:12]} at first use",
            where=f"stage '{stage}', {folder}/{name}",
            do="bring the former bytes back, give these another name, or use another --out",
        )
