"""Reads the summary of an export that is trained on."""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from clipmill.metadata.datacard import SUMMARY
from clipmill.metadata.outputs import Outputs
from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import StageError


def summary_of(
    data: str, stage: str, key: str = "data", formats: Sequence[str] = ("parquet",)
) -> dict[str, Any]:
    """Returns dataset.json of the export in a folder; StageError for another format.

    `key` is the setting that names the export.
    """
    try:
        dataset: dict[str, Any] = json.loads(Outputs(Storage(data)).read(SUMMARY))
    except FileNotFoundError:
        dataset = {}
    where = f"stage '{stage}', key `{key}`: {Storage(data)}"
    if dataset.get("format") not in formats:
        named = " or ".join(f"export.{name}" for name in formats)
        found = f"a {dataset['format']} export" if dataset else "no Parquet export"
        raise StageError(found, where, f"name a stage of {named}")
    files = [part["file"] for file in dataset["files"] for part in (file, file.get("pixels", file))]
    if strange := [name for name in files if "/" in name or "\\" in name]:
        found = f"{SUMMARY} names a file {strange[0]!r}, which is no name"
        raise StageError(found, where, "name an export that clipmill wrote")
    return dataset


def numbered(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the files of an export, each with `first`: the number of rows before it."""
    firsts = accumulate((file["rows"] for file in files), initial=0)
    return [{**file, "first": first} for file, first in zip(files, firsts, strict=False)]
