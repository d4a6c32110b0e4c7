"""Parquet: images, captions, embeddings and uids as data sets hold them, and what does not fit."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import IMAGE_EMBEDDING, TEXT_EMBEDDING, TEXTS
from clipmill.metadata.uid import uid_of
from clipmill.pipeline.errors import RecipeError, ShardError, StageError
from clipmill.stages.export._texts import as_texts
from clipmill.stages.ingest.parquet import Parquet

ROWS = 30  # enough that a share of them says something
BODIES = [f"image {i}".encode() for i in range(3)]
DIGESTS = [hashlib.sha256(body).hexdigest() for body in BODIES]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(folder, columns, name="0.parquet", **options) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"bytes": it, "path": f"{i}.jpg"} for i, it in enumerate(BODIES)], STRUCT),
        pa.array([{"bytes": it} for it in BODIES]),
        pa.array(BODIES),
        pa.array(BODIES, pa.large_binary()),
        pa.array(BODIES, pa.binary(7)),
    ],
    ids=["bytes and path", "struct of bytes", "binary", "large_binary", "fixed_size_binary"],
)
def test_an_image_is_read_from_bytes_or_a_struct_that_has_them(tmp_path, pool_of, column):
    write(tmp_path, {"image": column, "caption": ["a", "b", None]})
    pool = pool_of(Parquet(path=str(tmp_path), image_col="image", caption_col="caption"))
    assert pool["image"].to_pylist() == BODIES
    assert pool["image_bytes"].to_pylist() == [7, 7, 7]
    assert pool["sha256"].to_pylist() == DIGESTS
    assert pool["text"].to_pylist() == ["a", "b", None]
    with_path = column.type == STRUCT
    assert pool["url"].to_pylist() == (["0.jpg", "1.jpg", "2.jpg"] if with_path else [None] * 3)
    assert pool["reason"].null_count == 3
    assert pool["uid"].to_pylist() == [
        uid_of(f"0.parquet/{row}", text) for row, text in enumerate(["a", "b", None])
    ]


@pytest.mark.parametrize("shard_rows", [1, 7, 100, 10_000])
def test_uids_and_rows_are_the_same_whatever_the_shards(tmp_path, pool_of, shard_rows):
    columns = {"image": [b"%d" % i for i in range(200)], "caption": ["same"] * 200}
    write(tmp_path, columns, row_group_size=90)
    stage = Parquet(path=str(tmp_path), image_col="image", caption_col="caption")
    whole = pool_of(stage)
    assert len(set(whole["uid"].to_pylist())) == 200
    cut = Parquet(
        path=str(tmp_path), image_col="image", caption_col="caption", shard_rows=shard_rows
    )
    assert pool_of(cut).equals(whole)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"bytes": None, "path": "a"}, None, *({"bytes": it} for it in BODIES)], STRUCT),
        pa.array([b"", None, *BODIES]),
    ],
    ids=["struct", "binary"],
)
def test_a_row_without_an_image_is_null_with_a_reason(tmp_path, pool_of, column):
    write(tmp_path, {"image": column})
    pool = pool_of(Parquet(path=str(tmp_path), image_col="image"))
    assert pool["image"].to_pylist() == [None, None, *BODIES]
    assert pool["image_bytes"].to_pylist()[:2] == [None, None]
    assert pool["reason"].to_pylist() == ["no_image", "no_image", None, None, None]


LONG = pa.large_list(pa.large_string())


@pytest.mark.parametrize(
    ("captions", "texts"),
    [
        (pa.array(["a", "", None]), ["a", "", None]),
        (pa.array(["a", "a", "b"]).dictionary_encode(), ["a", "a", "b"]),
        (pa.array([["", " ", "first", "x"], [], None, ["only"], [None, ""]]),
         ["first", None, None, "only", None]),
        (pa.array([None, ["b", "c"], ["d"]], LONG), [None, "b", "d"]),
        (pa.array([["a", "b"], ["", "c"]], pa.list_(pa.string(), 2)), ["a", "c"]),
        (pa.array([[{"text": None}, {"text": "second"}], []], TEXTS.dtype), ["second", None]),
        (as_texts(pa.chunked_array([["a", "b"]])), ["a", "b"]),
        (pa.array([{"caption": "a"}, None]), ["a", None]),
        (pa.array([[b"a"], [b"\xff", b"b"]]), ["a", "b"]),
    ],
)  # fmt: skip
def test_a_list_of_captions_gives_its_first_that_is_not_empty(tmp_path, pool_of, captions, texts):
    write(tmp_path, {"url": [f"u{i}" for i in range(len(captions))], "c": captions})
    pool = pool_of(Parquet(path=str(tmp_path), url_col="url", caption_col="c"))
    assert pool["text"].to_pylist() == texts
    assert pool["reason"].null_count == len(texts)
    assert pool["uid"].to_pylist() == [uid_of(f"u{i}", text) for i, text in enumerate(texts)]


def test_extra_keeps_all_captions_and_any_other_column_in_its_type(tmp_path, pool_of):
    columns = {
        "url": ["u", "v"],
        "captions": [["a", "b"], []],
        "at": pa.array([1, None], pa.timestamp("us", "UTC")),
        "price": pa.array([1, 2], pa.decimal128(9, 2)),
        "tags": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "box": pa.array([{"x": [0.5], "y": None}, None]),
        "kind": pa.array(["k", "k"]).dictionary_encode(),
        "dino": pa.array([[1, 2], [3, 4]], pa.list_(pa.float16())),
    }
    path = write(tmp_path, columns)
    extra = {f.name: str(f.type) for f in pq.read_schema(path) if f.name not in ("url", "dino")}
    extra["dino"] = "fixed_size_list<float>[2]"
    pool = pool_of(Parquet(path=str(tmp_path), url_col="url", caption_col="captions", extra=extra))
    for name in columns.keys() - {"url", "dino"}:
        assert pool[name].to_pylist() == pa.table(columns)[name].to_pylist()
        assert pool.schema.field(name).type == pq.read_schema(path).field(name).type
    assert pool["dino"].to_pylist() == [[1, 2], [3, 4]]
    assert pool["reason"].null_count == 2


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(it) for it in (pa.float16(), pa.float32(), pa.float64())),
        *(pa.large_list(pa.float32()), pa.list_(pa.float32(), 3), pa.list_(pa.float16(), 3)),
    ],
    ids=str,
)
def test_embeddings_of_any_float_are_stored_as_every_reader_takes_them(tmp_path, pool_of, kind):
    vectors = [[0.5, -1, 2], None, [1, 2, 3]]
    write(
        tmp_path, {"url": list("abc"), "i": pa.array(vectors, kind), "t": pa.array(vectors, kind)}
    )
    stage = Parquet(
        path=str(tmp_path),
        url_col="url",
        image_embedding_col="i",
        text_embedding_col="t",
        embedding_width=3,
    )
    pool = pool_of(stage)
    for column in (IMAGE_EMBEDDING, TEXT_EMBEDDING):
        assert pool[column.name].to_pylist() == vectors
        assert column.accepts(pool.schema.field(column.name).type)
    assert pool["reason"].null_count == 3, "none is no fault"


def test_a_vector_of_another_width_or_with_nan_is_null_and_spares_its_neighbours(tmp_path, pool_of):
    bad = [[1.0], [1.0, float("nan")], [1.0, None], [1e300, 0.0], []]
    write(tmp_path, {"url": list("abcdefghijk"), "v": [*bad, *[[1.0, 2.0]] * 6]})
    stage = Parquet(path=str(tmp_path), url_col="url", image_embedding_col="v", embedding_width=2)
    pool = pool_of(stage)
    assert pool["image_embedding"].to_pylist() == [None] * 5 + [[1, 2]] * 6
    assert pool["reason"].to_pylist() == ["bad_embedding"] * 5 + [None] * 6


def test_a_pool_may_be_embeddings_alone(tmp_path, pool_of):
    write(tmp_path, {"v": [[1.0, 2.0], [3.0, 4.0]]})
    stage = Parquet(path=str(tmp_path), image_embedding_col="v", embedding_width=2)
    pool = pool_of(stage)
    assert pool.column_names == ["uid", "image_embedding", "reason"]
    assert pool["uid"].to_pylist() == [uid_of(f"0.parquet/{row}", None) for row in range(2)]


def test_a_stated_digest_is_held_to_the_image_and_not_trusted(tmp_path, pool_of):
    stated = [DIGESTS[0].upper(), "0" * 64, None]
    write(tmp_path, {"image": BODIES, "sha": stated})
    pool = pool_of(Parquet(path=str(tmp_path), image_col="image", sha256_col="sha"))
    assert pool["sha256"].to_pylist() == DIGESTS
    assert pool["reason"].to_pylist() == [None, "hash_mismatch", None]
    assert pool["image"].to_pylist() == BODIES


def test_a_digest_beside_a_link_is_the_one_that_a_download_is_to_have(tmp_path, pool_of):
    write(tmp_path, {"url": ["u", ""], "sha": ["0" * 64, None]})
    pool = pool_of(Parquet(path=str(tmp_path), url_col="url", sha256_col="sha"))
    assert pool["sha256"].to_pylist() == ["0" * 64, None]
    assert pool["reason"].to_pylist() == [None, "no_url"]


def test_a_uid_is_16_bytes_or_32_digits(tmp_path, pool_of):
    uid = bytes(range(16))
    write(tmp_path / "a", {"url": ["u"], "id": pa.array([uid], pa.binary(16))})
    write(tmp_path / "b", {"url": ["u", "v"], "id": [uid.hex(), "nope"]})
    for name, reasons in (("a", [None]), ("b", [None, "bad_uid"])):
        pool = pool_of(Parquet(path=str(tmp_path / name), url_col="url", uid_col="id"))
        assert pool["uid"].to_pylist() == [uid, uid_of("v", None)][: len(reasons)]
        assert pool["reason"].to_pylist() == reasons


def test_a_folder_a_glob_and_a_file_hold_files_of_several_schemas(tmp_path, pool_of):
    write(tmp_path, {"url": ["a"], "more": [1]}, "x/0.parquet")
    write(tmp_path, {"w": [7.0], "url": pa.array(["b"], pa.large_string())}, "x/y/1.pq")
    write(tmp_path, {"url": pa.array([], pa.null()), "w": pa.nulls(0)}, "z.parquet")

    def urls(path: str, **settings) -> list[str]:
        return pool_of(Parquet(path=path, url_col="url", **settings))["url"].to_pylist()

    assert urls(str(tmp_path)) == ["a", "b"]
    assert urls(f"file://{tmp_path}/x") == ["a", "b"]
    assert urls(f"{tmp_path}/x/*.parquet") == ["a"]
    assert urls(f"{tmp_path}/x/y/1.pq", width_col="w") == ["b"]
    with pytest.raises(StageError, match="no column 'w'"):
        urls(str(tmp_path), width_col="w")


def test_a_file_without_rows_is_a_shard_without_rows(tmp_path, run):
    write(tmp_path, {"image": pa.array([], pa.binary()), "v": pa.array([], pa.list_(pa.float32()))})
    stage = Parquet(
        path=str(tmp_path), image_col="image", image_embedding_col="v", embedding_width=4
    )
    assert list(map(len, run(stage).shards)) == [0]


def test_a_damaged_file_fails_its_shard_alone(tmp_path, run):
    for name in "abc":
        path = write(tmp_path, {"url": ["u"] * 9}, f"{name}.parquet")
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    shards = run(Parquet(path=str(tmp_path), url_col="url")).shards
    assert isinstance(shards[0], ShardError)
    assert shards[0].args[1] == path.replace("c.parquet", "a.parquet")
    assert list(map(len, shards[1:])) == [9, 9]


def test_the_first_rows_are_shown_as_they_would_be_stored(tmp_path, pool_of):
    write(tmp_path, {"image": BODIES, "c": list("abc")}, "0.parquet")
    write(tmp_path, {"image": BODIES, "c": list("def")}, "1.parquet")
    stage = Parquet(path=str(tmp_path), image_col="image", caption_col="c")
    assert stage.head(2).equals(pool_of(stage).slice(0, 2))
    assert stage.head(5)["text"].to_pylist() == list("abcde")
    assert len(stage.head(100)) == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "image_col"),
        ({"url_col": "u", "extra": {"url": "string"}}, "leave it out"),
        ({"url_col": "u", "extra": {"n": "lst<int>"}}, "Arrow type"),
        ({"url_col": "u", "extra": {"n": "timestamp[s]"}}, r"write timestamp\[ms\]"),
        ({"url_col": "u", "image_embedding_col": "v"}, "embedding_width: 512"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(settings, said):
    with pytest.raises(RecipeError, match=said):
        Parquet(path="x", **settings)


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"URL": ["a"], "TEXT": ["t"]}, {"url_col": "url", "caption_col": "text"},
         "did you mean `url_col: URL` and `caption_col: TEXT`?"),
        ({"image_url": ["a"], "alt_text": ["t"]}, {"url_col": "url", "caption_col": "caption"},
         "did you mean `url_col: image_url` and `caption_col: alt_text`?"),
        ({"jpg": [b"a"]}, {"image_col": "image"}, "`image_col: jpg`"),
        ({"url": ["a"], "similarty": [1]}, {"url_col": "url", "extra": {"similarity": "int64"}},
         "did you mean `extra.similarty`?"),
        ({"url": ["a"], "x": [1]}, {"url_col": "url", "extra": {"similarity": "int64"}},
         "write in `extra.similarity` how the file names it, or null if it has none"),
        ({"image": ["http://a"]}, {"image_col": "image"}, "links belong in `url_col`"),
        ({"url": ["a"], "v": pa.array([[1, 2]], pa.list_(pa.float32(), 2))},
         {"url_col": "url", "text_embedding_col": "v", "embedding_width": 3},
         "write embedding_width: 2"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_or_is_no_such_is_told_with_what_to_write(
    tmp_path, run, columns, settings, said
):
    path = write(tmp_path, columns)
    with pytest.raises(StageError) as error:
        run(Parquet(path=str(tmp_path), **settings))
    found, where, do = error.value.args
    assert where == path
    assert said in do
    assert "the file has" in found or "is " in found or "has vectors" in found


@pytest.mark.parametrize(
    ("values", "settings", "found", "do"),
    [
        (["cc"] * ROWS, {"extra": {"x": "int64"}}, "30 of the first 30 values of 'x' are no int64:",
         "write `extra.x: string`"),
        (list(np.arange(ROWS) + 0.5), {"extra": {"x": "int32"}}, "are no int32: 0.5",
         "write `extra.x: double`"),
        ([[1.0, 2.0]] * ROWS, {"image_embedding_col": "x", "embedding_width": 3},
         "[1.0, 2.0]", "write embedding_width: 2"),
        ([[1.0, 2.0]] * ROWS, {"extra": {"x": "fixed_size_list<double>[3]"}},
         "are no vectors of 3 numbers", 'x: "fixed_size_list<item: double>[2]"'),
        ([[float("nan")]] * ROWS, {"image_embedding_col": "x", "embedding_width": 1},
         "[nan]", "without NaN"),
        (list(range(ROWS)), {"uid_col": "x"}, "32 hex digits: 0", "`uid_col`"),
        (["wide"] * ROWS, {"width_col": "x"}, "are no int32: 'wide'", "`width_col`"),
        ([b"\xff"] * ROWS, {"caption_col": "x"}, "'x' are no text", "`caption_col`"),
        (["ab"] * 15 + ["5"] * 14 + [None], {"extra": {"x": "int8"}}, "15 of the first 29",
         "string"),
    ],
)  # fmt: skip
def test_a_setting_that_most_values_contradict_stops_the_stage(
    tmp_path, run, values, settings, found, do
):
    path = write(tmp_path, {"url": ["u"] * ROWS, "x": values})
    with pytest.raises(StageError) as error:
        run(Parquet(path=str(tmp_path), url_col="url", **settings))
    assert found in error.value.args[0]
    assert error.value.args[1] == path
    assert do in error.value.args[2]


def test_images_of_which_most_are_paths_or_other_than_said_stop_the_stage(tmp_path, run):
    image = pa.array([{"bytes": None, "path": "a.jpg"}] * ROWS, STRUCT)
    write(tmp_path / "a", {"image": image})
    with pytest.raises(StageError, match="paths alone"):
        run(Parquet(path=str(tmp_path / "a"), image_col="image"))
    write(tmp_path / "b", {"image": [b"%d" % i for i in range(ROWS)], "sha": ["0" * 64] * ROWS})
    with pytest.raises(StageError, match="not the SHA-256 of the image"):
        run(Parquet(path=str(tmp_path / "b"), image_col="image", sha256_col="sha"))


def test_a_few_values_that_do_not_fit_stop_nothing(tmp_path, pool_of):
    values = ["5"] * 16 + ["five"] * 14
    write(tmp_path, {"url": ["u"] * ROWS, "x": values})
    pool = pool_of(Parquet(path=str(tmp_path), url_col="url", extra={"x": "int8"}))
    assert pool["x"].to_pylist() == [5] * 16 + [None] * 14
    assert pool["reason"].to_pylist() == [None] * 16 + ["bad_value"] * 14


def test_a_dotted_path_names_a_field_of_a_struct_and_a_column_called_so_goes_first(
    tmp_path, pool_of
):
    deep = [{"en": {"long": "a b"}, "de": "c"}, {"en": None, "de": "d"}, None]
    columns = {
        "image": pa.array([{"url": f"u{i}", "body": body} for i, body in enumerate(BODIES)]),
        "caption": pa.array(deep),
        "caption.de": ["first", "of", "all"],
        "more": pa.array([{"id": f"{i:032x}"} for i in range(3)]),
    }
    write(tmp_path, columns, row_group_size=2)
    stage = Parquet(
        **{"path": str(tmp_path), "url_col": "image.url", "image_col": "image.body"},
        **{
            "caption_col": "caption.en.long",
            "uid_col": "more.id",
            "extra": {"caption.de": "string"},
        },
    )
    pool = pool_of(stage)
    assert pool["url"].to_pylist() == ["u0", "u1", "u2"]
    assert pool["image"].to_pylist() == BODIES
    assert pool["text"].to_pylist() == ["a b", None, None]
    assert pool["caption.de"].to_pylist() == ["first", "of", "all"]
    assert [uid.hex() for uid in pool["uid"].to_pylist()] == [f"{i:032x}" for i in range(3)]
    with pytest.raises(StageError, match=r"did you mean `caption_col: caption\.en\.long`"):
        pool_of(replace(stage, caption_col="caption.en.lang"))


def test_all_captions_of_a_list_are_kept_the_first_as_the_text(tmp_path, pool_of):
    """Where it is asked for: what runs have stored stays."""
    lists = pa.array([["\ufeffa", "b", "", "c"], [" ", "d"], ["", None], None])
    write(tmp_path, {"url": ["u"] * 4, "c": lists})
    stage = Parquet(path=str(tmp_path), url_col="url", caption_col="c", all_captions=True)
    pool = pool_of(stage)
    assert pool["text"].to_pylist() == ["a", "d", None, None]
    assert pool["captions"].type == TEXTS.dtype
    texts = [row and [text["text"] for text in row] for row in pool["captions"].to_pylist()]
    assert texts == [["b", "c"], None, None, None]
    own = {"source": "original", "label": "original", "model": None, "prompt_id": None}
    assert pool["captions"].to_pylist()[0][0] == {"text": "b", **own}
    assert "captions" not in pool_of(replace(stage, all_captions=False)).column_names
