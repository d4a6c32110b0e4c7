"""Checks exports of other runs, named as `data: "export:<URI>"` and read in place.

The URI is the folder of a stage in another run, or one that `clipmill export` wrote.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pyarrow.fs import FileType

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.limits import PARSE_ERRORS
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError

SCHEME = "export:"
AGAIN = "copy it again, or run its recipe again"


def uri_in(keys: Mapping[str, Any]) -> str | None:
    """Returns the URI of another run's export in a stage's keys; None if there is none."""
    data = keys.get("data")
    if isinstance(data, str) and data.startswith(SCHEME):
        return data.removeprefix(SCHEME)
    return None


def is_gone(uri: str) -> bool:
    """Returns whether the URI does not exist."""
    folder = Storage(uri)
    return bool(folder.fs.get_file_info(folder.path).type == FileType.NotFound)


def digest_of(uri: str, where: str) -> str:
    """Returns the digest of an export's summary; raises StageError if the export is not complete.

    Checks names and sizes of its files; bytes are checked as they are read.
    """
    folder = Storage(uri)
    outputs, place = Outputs(folder), f"{where}: {folder}"
    try:
        summary = outputs.read(SUMMARY)
        json.loads(summary)
    except FileNotFoundError:
        summary = b""
    except DamagedError as changed:
        raise StageError(f"{changed.name}: {changed.found}", place, AGAIN) from None
    except PARSE_ERRORS:
        raise StageError(f"a {SUMMARY} that is no JSON", place, AGAIN) from None
    if not summary or not (outputs.sizes or not outputs.inside):
        raise StageError(
            "an export that is not finished" if summary else "no export",
            place,
            "name the folder of a finished export stage, RUN/stages/NAME-…, or one that"
            " `clipmill export --to parquet` wrote",
        )
    entries = folder.entries(outputs.inside.rstrip("/"), below=True)
    sizes = {entry.name: entry.size for entry in entries}
    bad = [name for name, size in sorted(outputs.sizes.items()) if sizes.get(name) != size]
    if bad:
        what = "has another size" if bad[0] in sizes else "is not there"
        raise StageError(
            f"{len(bad)} of the export's {len(outputs.sizes)} files are not as they were stored:"
            f" {bad[0]} {what}",
            place,
            AGAIN,
        )
    return hashlib.sha256(summary).hexdigest()
