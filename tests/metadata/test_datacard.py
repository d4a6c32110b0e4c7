"""What stands beside an export: every count and file, and nothing that changes between runs."""

import json

import pytest

from clipmill.metadata.datacard import croissant, data_card, documents

SUMMARY = {
    "name": "shards",
    "format": "parquet",
    "seed": 7,
    "counts": {"rows": 1_500, "exported": 1_200, "not_kept": 250, "no_image": 50},
    "columns": [
        ["uid", "fixed_size_binary[16]"],
        ["image", "binary"],
        ["texts", "list<element: struct<text: string>>"],
        ["repeats", "int32"],
        ["emb.image_embedding", "fixed_size_list<item: float>[64]"],
        ["keep", "bool"],
        ["score", "float"],
        ["half", "list<item: halffloat>"],
    ],
    "files": [
        {"file": "00000.parquet", "rows": 700, "bytes": 10_000, "sha256": "a" * 64},
        {"file": "00001.parquet", "rows": 500, "bytes": 9_000, "sha256": "b" * 64},
    ],
}


def test_the_card_says_how_many_rows_stayed_and_why():
    card = data_card(SUMMARY)
    assert "1,200 rows, 19,000 bytes,\n2 files. Seed 7." in card
    for line in ("| seen | 1,500 |", "| left out: not_kept | 250 |", "| left out: no_image | 50 |"):
        assert line in card
    assert "| `emb.image_embedding` | `fixed_size_list<item: float>[64]` | Embedding of" in card


def test_dataset_json_is_last_and_holds_the_summary():
    written = documents(SUMMARY)
    assert list(written) == ["README.md", "croissant.json", "dataset.json"]
    assert json.loads(written["dataset.json"]) == SUMMARY | {"rows": 1_200}


@pytest.mark.parametrize("layout", ["webdataset", "uid_list"])
def test_croissant_describes_parquet_only(layout):
    assert list(documents(SUMMARY | {"format": layout})) == ["README.md", "dataset.json"]


def test_croissant_types_every_column():
    (records,) = croissant(SUMMARY)["recordSet"]
    types = {f["name"]: (f["dataType"], f.get("repeated", False)) for f in records["field"]}
    assert types == {
        "uid": ("sc:Text", False),
        "image": ("sc:ImageObject", False),
        "texts": ("sc:Text", True),
        "repeats": ("sc:Integer", False),
        "emb.image_embedding": ("sc:Float", True),
        "keep": ("sc:Boolean", False),
        "score": ("sc:Float", False),
        "half": ("sc:Float", True),
    }


PUBLISHED = SUMMARY | {
    "license": "https://creativecommons.org/licenses/by/4.0/",
    "url": "https://example.org/set",
    "columns": [*SUMMARY["columns"], ["uid_hex", "string"]],
}


def test_a_licence_and_a_page_are_said_where_there_are_such():
    assert not {"license", "url"} & croissant(SUMMARY).keys()
    assert "none is granted here" in data_card(SUMMARY)
    card = croissant(PUBLISHED)
    assert (card["license"], card["url"]) == (PUBLISHED["license"], PUBLISHED["url"])
    text = data_card(PUBLISHED)
    assert "offered under https://creativecommons.org/licenses/by/4.0/." in text
    assert "<https://example.org/set>" in text


def test_a_uid_in_hex_stands_for_the_uid():
    fields = {field["@id"]: field for field in croissant(PUBLISHED)["recordSet"][0]["field"]}
    assert len(fields) == len(SUMMARY["columns"])
    assert fields["rows/uid"]["dataType"] == "sc:Text"
    assert fields["rows/uid"]["source"]["extract"] == {"column": "uid_hex"}


def test_croissant_has_what_version_1_asks_of_a_set_its_files_and_its_records():
    """What is required by the specification, sections 4 to 6, and identifiers that meet."""
    card = croissant(PUBLISHED)
    assert card["@type"] == "sc:Dataset"
    assert card["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert all(card[name] for name in ("name", "description", "license", "url", "distribution"))
    terms = set(card["@context"])
    used = {key for node in nodes(card) for key in node if not key.startswith("@")}
    schema_org = {"name", "description", "license", "url", "encodingFormat", "distribution"}
    assert used - terms <= schema_org
    for node in nodes(card):
        if "@type" in node:
            assert node["@type"] in ("sc:Dataset", "cr:FileSet", "cr:RecordSet", "cr:Field")
            assert node["name"]
    ids = [node["@id"] for node in nodes(card) if "@type" in node and "@id" in node]
    assert len(ids) == len(set(ids))
    assert {node["fileSet"]["@id"] for node in nodes(card) if "fileSet" in node} <= set(ids)


def nodes(value):
    """Every object of a card but its context."""
    if isinstance(value, list):
        for item in value:
            yield from nodes(item)
    elif isinstance(value, dict):
        yield value
        for key, item in value.items():
            if key != "@context":
                yield from nodes(item)


def test_every_croissant_source_is_the_set_of_shards():
    card = croissant(SUMMARY)
    (shards,) = card["distribution"]
    assert shards["includes"] == "*.parquet"
    fields = card["recordSet"][0]["field"]
    assert {f["source"]["fileSet"]["@id"] for f in fields} == {shards["@id"]}
    assert [f["source"]["extract"]["column"] for f in fields] == [n for n, _ in SUMMARY["columns"]]
