"""What is made once in a run folder, by its key: a result, and the files that go with it.

`once/<key>/<digest>/<name>` are the files, each below a digest of its bytes, and `made.json`, which
comes last, names them. So two makers cannot mix, and files without it are nobody's. Nothing points
into the folder but by key: whoever finds it gone, or damaged, makes it again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.outputs import Noted, put_output
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Put

FOLDER = "once"
MADE = "made.json"
KEY = re.compile("[0-9a-f]{12,128}")


def made_once(
    run: Storage, key: str, make: Callable[[Put], Mapping[str, Any]], folder: Storage, prefix: str
) -> dict[str, Any]:
    """What make(put) returned for the key; its files are outputs of the stage in `folder`."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no digest: a key is 12 to 128 hex digits")
    kept = run.child(FOLDER).child(key)
    made = whole(kept)
    if made is None:
        files: dict[str, dict[str, Any]] = {}
        result = make(partial(_put, kept, files))
        value = {"result": dict(result), "files": files}
        put_sealed(kept, MADE, value, point="journal")
        made = json.loads(json.dumps(value))
    for name, held in made["files"].items():
        noted = Noted(held["size_bytes"], held["sha256"])
        put_output(folder, f"{prefix}{name}", noted, kept, place_of(name, noted.sha256))
    return dict(made["result"])


def place_of(name: str, sha256: str) -> str:
    """Where a file lies in the folder of its key."""
    return f"{sha256[:16]}/{name}"


def whole(kept: Storage) -> dict[str, Any] | None:
    """What `made.json` holds, where all its files are as they were stored."""
    made = read_sealed(kept, MADE)
    if made is None:
        return None
    for name, held in made["files"].items():
        try:
            if kept.sha256(place_of(name, held["sha256"])) != held["sha256"]:
                return None
        except FileNotFoundError:
            return None
    return made


def _put(kept: Storage, files: dict[str, dict[str, Any]], name: str, path: Path) -> None:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256}
    kept.put_file(place_of(name, sha256), path, point="rename")
