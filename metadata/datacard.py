"""Writes the documents beside an export: dataset.json for programs, a data card, Croissant.

A summary is {name, format, seed, counts, columns: [[name, type]], files: [{file, rows, bytes,
sha256}]}. Optional: `license` and `url` from the recipe; `dropped`, {stage, reason}, if the rows
are those a stage lost; `made_by`, the stages before it: {stage, uses, settings}; `features`, the
columns' types as Hugging Face names them. It is complete when the last file is written, and holds
no time and no machine.
"""

import json
from collections.abc import Sequence
from typing import Any

from clipmill.metadata import schema
from clipmill.metadata.hub_card import head

SUMMARY = "dataset.json"
DOCS = {c.name: c.doc for c in vars(schema).values() if isinstance(c, schema.Column)}
NOTHING = {"bytes": 0}
HOW_TO_READ = {
    "pixels": "`numpy.load(FILE.pixels.npy, mmap_mode='r')[n]` is the picture of row n of"
    " FILE.parquet, RGB in uint8.",
    "parquet": "Every file stands alone; rows are shuffled within a file and files by their number"
    ": a loader that reads files in any order and mixes a few of them needs no other shuffle."
    " Polars, DuckDB, pandas and `datasets` read it; `caption` and `uid_hex` are plain text.",
    "huggingface": "With `datasets` installed, and FOLDER this folder or the set's name on the Hub:"
    """

```python
from datasets import load_dataset

pairs = load_dataset("FOLDER", split="train")  # streaming=True reads it without a copy
pairs[0]["image"], pairs[0]["caption"]  # a PIL picture and a text
```

Rows are shuffled within a file and files by their number.""",
    "webdataset": "img2dataset's layout: KEY.jpg (or the suffix of its format), KEY.txt and"
    " KEY.json; a Parquet file beside each tar repeats the JSON.",
    "csv": "`rows.csv` has a line of names, then a line a row, in UTF-8; lists and structs are"
    " JSON, an empty field is a missing value. `polars.read_csv` and `pandas.read_csv` read it.",
    "jsonl": "`rows.jsonl` has a JSON object a line, in UTF-8. `polars.read_ndjson` and"
    " `pandas.read_json(..., lines=True)` read it.",
    "map": """`map.parquet` has a row a point. The viewer embedding-atlas opens it; `pip install
embedding-atlas` in an environment of its own, then

```sh
embedding-atlas map.parquet --x x --y y --text caption --image thumbnail --neighbors neighbors
```

`x` and `y` are of the plane in which the embeddings spread most; `neighbors` names rows of the
file, from 0, and 1 - cosine to each.""",
    "uid_list": "DataComp's subset file: 128-bit ids as two big-endian halves, `u8,u8`, sorted; an"
    " id that stands k times is to be seen k times. `numpy.load(..., mmap_mode='r')` reads it.",
}
CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        term: f"cr:{term}"
        for term in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject"),
            *("fileProperty", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
            *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform"),
        )
    },
}  # whole, as published: readers warn if a term is missing
CROISSANT_TYPES = {  # by the prefix of Arrow's type name; else text
    "bool": "sc:Boolean",
    "int": "sc:Integer",
    "uint": "sc:Integer",
    "halffloat": "sc:Float",
    "float": "sc:Float",
    "double": "sc:Float",
}


def documents(summary: dict[str, Any]) -> dict[str, str]:
    """Returns file name to text; dataset.json last, so that its presence marks a whole export."""
    texts = {"README.md": data_card(summary)}
    if summary["format"] == "parquet":
        texts["croissant.json"] = _json(croissant(summary))
    return texts | {SUMMARY: _json(summary | {"rows": _rows(summary)})}


def data_card(summary: dict[str, Any]) -> str:
    """Returns the card in Markdown: contents, columns, how it was made, how to read, cautions."""
    counts = dict(summary["counts"])
    seen, exported = counts.pop("rows"), counts.pop("exported")
    size_bytes = sum(
        part["bytes"] for file in summary["files"] for part in (file, file.get("pixels", NOTHING))
    )
    fields = "\n".join(
        f"| `{name}` | `{dtype}` | {_doc(name)} |" for name, dtype in summary["columns"]
    )
    granted = ", and none is granted here."
    if "license" in summary:
        granted = f". The selection is offered under {summary['license']}."
    page = f"\n<{summary['url']}>\n" if "url" in summary else ""
    left = "\n".join(f"| left out: {reason} | {n:,} |" for reason, n in counts.items())
    what = "Image-text pairs, curated by clipmill"
    if "dropped" in summary:
        lost = summary["dropped"]
        what = f"Rows that the stage `{lost['stage']}` lost for `{lost['reason']}`"
    return f"""{head(summary)}# {summary["name"]}

{what}: {_rows(summary):,} rows, {size_bytes:,} bytes,
{len(summary["files"]):,} files. Seed {summary["seed"]}.
{page}
| rows | |
|---|---|
| seen | {seen:,} |
| exported | {exported:,} |
{left}

## Columns

| name | type | |
|---|---|---|
{fields}
{_stage_table(summary.get("made_by", ()))}
## Reading it

{HOW_TO_READ[summary["format"]]} `dataset.json` lists the files with rows, bytes and SHA-256.

## Before you use or share it

Images and captions belong to their authors: the licences are those of the pool{granted}
Captions are as found on the web. Every filter keeps some groups of people, languages
and places more than others: compare the keep rates before a model is trained for use on people.
"""


def _stage_table(steps: Sequence[dict[str, Any]]) -> str:
    """Returns the table of the stages before the export; empty if none are listed."""
    if not steps:
        return ""
    lines = ["", "## How it was made", "", "| stage | is | with |", "|---|---|---|"]
    for step in steps:
        settings = (f"{key}: {_as_code(value)}" for key, value in step["settings"].items())
        lines.append(f"| `{step['stage']}` | `{step['uses']}` | {', '.join(settings)} |")
    return "\n".join([*lines, ""])


def _as_code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "`" + text.replace("|", "\\|").replace("\n", " ") + "`"


def croissant(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns Croissant 1.0 of an export to Parquet, whose files lie beside it."""
    columns = {name: (name, dtype) for name, dtype in summary["columns"]}
    if as_text := columns.pop(schema.UID_HEX.name, None):
        columns[schema.UID.name] = as_text  # Croissant has no type for raw bytes
    return {
        "@context": CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "name": summary["name"],
        "description": f"Image-text pairs, curated by clipmill: {_rows(summary)} rows.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        **{name: summary[name] for name in ("license", "url") if name in summary},
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "encodingFormat": "application/x-parquet",
                "includes": "*.parquet",
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "field": [_field(name, *source) for name, source in columns.items()],
            }
        ],
    }


def _field(name: str, column: str, dtype: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": column}}
    if name == schema.TEXTS.name:
        source["transform"] = {"jsonPath": "text"}  # the text of each caption alone
    item = dtype.partition("list<")[2].partition(": ")[2] or dtype  # list<item: float>: float
    known = (kind for start, kind in CROISSANT_TYPES.items() if item.startswith(start))
    return {
        "@type": "cr:Field",
        "@id": f"rows/{name}",
        "name": name,
        "description": _doc(column),
        "dataType": "sc:ImageObject" if name == schema.IMAGE.name else next(known, "sc:Text"),
        "source": source,
        **({"repeated": True} if item != dtype else {}),
    }


def _doc(name: str) -> str:
    """Returns a column's description, with or without a stage before its name."""
    return DOCS.get(name.rpartition(".")[2], "")


def _rows(summary: dict[str, Any]) -> int:
    return sum(file["rows"] for file in summary["files"])


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
