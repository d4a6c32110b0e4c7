"""What a Parquet export says of itself."""

import json
from typing import Any

from metadata.datacard import SUMMARY
from metadata.outputs import Outputs
from metadata.storage import Storage
from pipeline.errors import StageError


def summary_of(data: str, stage: str, key: str = "data") -> dict[str, Any]:
    """dataset.json of the Parquet export in a folder; StageError of anything else.

    `key` is the setting that names the export.
    """
    try:
        dataset: dict[str, Any] = json.loads(Outputs(Storage(data)).read(SUMMARY))
    except FileNotFoundError:
        dataset = {}
    if dataset.get("format") != "parquet":
        raise StageError(
            found=f"a {dataset['format']} export" if dataset else "no Parquet export",
            where=f"stage '{stage}', key `{key}`: {Storage(data)}",
            do="name a stage of export.parquet",
        )
    return dataset
