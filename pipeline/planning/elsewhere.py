"""`data: "export:<URI>"`: an export that another run made, read where it lies.

The URI is the folder of a stage of another run, or one that `clipmill export` wrote.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pyarrow.fs import FileType

from clipmill.metadata.damage import DamagedError
from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.limits import UNPARSED
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError

SCHEME = "export:"
AGAIN = "copy it again, or run its recipe again"


def uri_in(keys: Mapping[str, Any]) -> str | None:
    """The URI of the export elsewhere that the keys of a stage name, if they name one."""
    data = keys.get("data")
    if isinstance(data, str) and data.startswith(SCHEME):
        return data.removeprefix(SCHEME)
    return None


def is_gone(uri: str) -> bool:
    """Whether nothing is at the URI any more."""
    folder = Storage(uri)
    return bool(folder.fs.get_file_info(folder.path).type == FileType.NotFound)


def digest_of(uri: str, where: str) -> str:
    """A digest of what the export says of itself; StageError where not all of it is there.

    Names and sizes are compared here; bytes where they are read.
    """
    folder = Storage(uri)
    outputs, place = Outputs(folder), f"{where}: {folder}"
    try:
        said = outputs.read(SUMMARY)
        json.loads(said)
    except FileNotFoundError:
        said = b""
    except DamagedError as changed:
        raise StageError(f"{changed.name}: {changed.found}", place, AGAIN) from None
    except UNPARSED:
        raise StageError(f"a {SUMMARY} that is no JSON", place, AGAIN) from None
    if not said or not (outputs.sizes or not outputs.inside):
        raise StageError(
            "an export that is not finished" if said else "no export",
            place,
            "name the folder of a finished export stage, RUN/stages/NAME-…, or one that"
            " `clipmill export --to parquet` wrote",
        )
    there = {entry.name: entry.size for entry in folder.entries(outputs.inside.rstrip("/"))}
    bad = [name for name, size in sorted(outputs.sizes.items()) if there.get(name) != size]
    if bad:
        what = "has another size" if bad[0] in there else "is not there"
        raise StageError(
            f"{len(bad)} of the export's {len(outputs.sizes)} files are not as they were stored:"
            f" {bad[0]} {what}",
            place,
            AGAIN,
        )
    return hashlib.sha256(said).hexdigest()
