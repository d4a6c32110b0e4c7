"""Makes results and their files once in a run folder, cached by key.

The files are `once/<key>/<digest>/<name>`, each below a digest of its bytes; `made.json`, stored
last, names them. So files of two makers cannot mix, and files without a `made.json` belong to none.
Entries are found only by key, so a missing or damaged one can simply be made again.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.metadata.outputs import Noted, digest_of, put_output
from clipmill.metadata.sealed import put_sealed, read_sealed
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Put

FOLDER = "once"
MADE = "made.json"
KEY = re.compile("[0-9a-f]{12,128}")


def made_once(
    run: Storage, key: str, make: Callable[[Put], Mapping[str, Any]], folder: Storage, prefix: str
) -> dict[str, Any]:
    """Returns the result of make(put), cached by key; its files become the stage's outputs."""
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no digest: a key is 12 to 128 hex digits")
    cache = run.child(FOLDER).child(key)
    entry = whole(cache)
    if entry is None:
        files: dict[str, dict[str, Any]] = {}
        result = make(partial(_put, cache, files))
        value = {"result": dict(result), "files": files}
        put_sealed(cache, MADE, value, point="journal")
        entry = json.loads(json.dumps(value))
    for name, file in entry["files"].items():
        noted = Noted(file["size_bytes"], file["sha256"])
        put_output(folder, f"{prefix}{name}", noted, cache, place_of(name, noted.sha256))
    return dict(entry["result"])


def place_of(name: str, sha256: str) -> str:
    """Returns the path of a file within the folder of its key."""
    return f"{sha256[:16]}/{name}"


def whole(cache: Storage) -> dict[str, Any] | None:
    """Returns the content of `made.json`; None if it or any of its files is missing or damaged."""
    entry = read_sealed(cache, MADE)
    files = entry["files"].items() if entry else ()
    with suppress(FileNotFoundError):
        if all(cache.sha256(place_of(n, file["sha256"])) == file["sha256"] for n, file in files):
            return entry
    return None


def _put(cache: Storage, files: dict[str, dict[str, Any]], name: str, path: Path) -> None:
    sha256 = digest_of(path)
    files[name] = {"size_bytes": path.stat().st_size, "sha256": sha256}
    cache.put_file(place_of(name, sha256), path, point="rename")
