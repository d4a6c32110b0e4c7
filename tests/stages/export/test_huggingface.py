"""export.huggingface: a folder that `datasets` opens, with pictures as pictures."""

import json
from decimal import Decimal
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export._leaving import Dropped
from clipmill.stages.export.huggingface import HuggingFace, features_of, with_features

ODD = {  # columns that stages and pools may have
    "language": pa.array(["en", "de"]).dictionary_encode(),
    "score": pa.array([0.5, None], pa.float32()),
    "embedding": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "half": pa.array([[1.0], None], pa.list_(pa.float16())),
    "ids": pa.array([[1, 2], []], pa.list_(pa.int32())),
    "said": pa.array([[{"text": "a", "score": 1.0}], []]),
    "box": pa.array([{"w": 1, "at": {"x": 2.0}}, None]),
    "when": pa.array([1, 2], pa.timestamp("ms", "UTC")),
    "day": pa.array([1, 2], pa.date32()),
    "duplicate_of": pa.array([b"k" * 16, None], pa.binary(16)),
    "raw": pa.array([b"x", None], pa.binary()),
    "phash": pa.array([2**63, 1], pa.uint64()),
    "large": pa.array([[1], []], pa.large_list(pa.int64())),
    "pairs": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "price": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
    "took": pa.array([1, None], pa.duration("s")),
    "is_odd": pa.array([True, None]),
}


@pytest.fixture(autouse=True)
def offline(datasets, monkeypatch, tmp_path):
    """Nothing is asked of the Hub, and nothing kept of one test for the next."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def export(ctx, shards, steps=(), **settings) -> str:
    HuggingFace(**settings).run(Inputs(rows=shards, steps=steps), ctx)
    return str(ctx.out)


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_gives_the_rows_with_the_pixels_that_they_had(
    streaming, pool, leaving, memory_shards, memory_context, datasets
):
    ctx = memory_context()
    shards = memory_shards(*(pool[start : start + 24] for start in range(0, 240, 24)))
    folder = export(ctx, shards, columns=("score", "language"), rows_per_shard=40)
    assert len(list((ctx.out / "data").glob("train-0000?-of-0000?.parquet"))) > 2
    loaded = datasets.load_dataset(folder, split="train", streaming=streaming)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["caption"] == datasets.Value("string")
    found = {row["uid"]: row for row in loaded}
    assert len(found) == len(leaving)
    for row in leaving.to_pylist():
        it = found[row["uid"].hex()]
        expected = np.asarray(Image.open(BytesIO(row["image"])))
        assert np.array_equal(np.asarray(it["image"]), expected)
        said = {name: it[name] for name in ("caption", "url", "language")}
        assert said == {"caption": row["text"], "url": row["url"], "language": row["language"]}
        assert it["score"] == row["score"] or np.isnan(row["score"])


@pytest.fixture
def odd() -> pa.Table:
    """Two rows with a column of every type, both with a picture."""
    body = BytesIO()
    Image.new("RGB", (3, 2), "red").save(body, "PNG")
    return pa.table(
        {
            "uid": pa.array([b"a" * 16, b"b" * 16], pa.binary(16)),
            "image": pa.array([body.getvalue()] * 2),
            "text": pa.array(["one", "two"]),
            **ODD,
        }
    )


def test_columns_of_every_type_go_along(odd, memory_shards, memory_context, datasets):
    folder = export(memory_context(), memory_shards(odd), columns=tuple(ODD))
    loaded = datasets.load_dataset(folder, split="train").sort("uid")
    as_text = {"pairs", "large"}  # `datasets` has no type for them
    assert [loaded[name][0] for name in ("pairs", "large")] == ['[["a", 1]]', "[1]"]
    for name in ODD.keys() - {"duplicate_of", "when", "day"} - as_text:
        assert loaded[name][:] == ODD[name].to_pylist(), name
    assert loaded["duplicate_of"][:] == ["6b" * 16, None]
    assert loaded[0]["when"].timestamp() == 0.001


def test_features_stand_in_the_card_and_in_each_file_alike(
    odd, memory_shards, memory_context, datasets
):
    ctx = memory_context()
    folder = export(ctx, memory_shards(odd), columns=tuple(ODD))
    by_card = datasets.load_dataset_builder(folder).info.features
    file = next((ctx.out / "data").glob("*.parquet"))
    assert datasets.Features.from_arrow_schema(pq.read_schema(file)) == by_card
    (ctx.out / "README.md").unlink()
    assert datasets.load_dataset(folder, split="train").features == by_card


def test_what_datasets_writes_has_the_features_that_we_say(datasets):
    """A column's feature is what `datasets` itself would make of its type."""
    besides = ("said", "pairs", "large")
    table = pa.table({name: column for name, column in ODD.items() if name not in besides})
    plain = datasets.Features.from_arrow_schema(table.schema)
    given = with_features(
        pa.schema([(f.name, plain.arrow_schema.field(f.name).type) for f in table.schema])
    )
    assert datasets.Features.from_arrow_schema(given) == plain
    assert features_of(pa.schema([("image", pa.binary())])) == {"image": {"_type": "Image"}}


def test_the_card_says_where_the_rows_come_from_and_how_to_load_them(
    pool, leaving, memory_shards, memory_context, datasets
):
    ctx = memory_context()
    steps = (
        {"stage": "pool", "uses": "ingest.parquet", "settings": {"path": "s3://bucket/pool"}},
        {"stage": "best", "uses": "select.where", "settings": {"where": "a <= 1 | b"}},
    )
    export(ctx, memory_shards(pool), steps=steps, license="CC-BY-4.0")
    card = (ctx.out / "README.md").read_text()
    assert "| `pool` | `ingest.parquet` | path: `s3://bucket/pool` |" in card
    assert "| `best` | `select.where` | where: `a <= 1 \\| b` |" in card
    assert "| exported | 144 |" in card
    assert 'load_dataset("FOLDER", split="train")' in card
    assert "license: cc-by-4.0" in card
    info = datasets.load_dataset_builder(str(ctx.out)).info
    assert info.splits["train"].num_examples == len(leaving) == 144
    assert json.loads((ctx.out / "dataset.json").read_text())["made_by"] == list(steps)


def test_lost_rows_without_a_picture_load_as_none(pool, memory_shards, memory_context, datasets):
    reasons = pa.array([None, "no_image"] * 120).dictionary_encode()
    given = memory_shards(pool.append_column("emb.reason", reasons))
    folder = export(memory_context(), given, dropped=Dropped("emb", "no_image"))
    loaded = datasets.load_dataset(folder, split="train")
    assert set(loaded["reason"]) == {"no_image"}
    assert sum(row["image"] is None for row in loaded) == 12


def test_settings_that_cannot_be_written_are_refused():
    with pytest.raises(ValueError, match="'caption', which this export has anyway"):
        HuggingFace(columns=("caption",))
