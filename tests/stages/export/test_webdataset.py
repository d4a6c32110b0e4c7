"""export.webdataset: read back by webdataset itself, named as img2dataset names."""

import io
import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.schema import REPEATS
from clipmill.pipeline.dataset import Inputs
from clipmill.stages.export.webdataset import WebDataset, suffix_of


def export(ctx, shards, **settings) -> list:
    WebDataset(**settings).run(Inputs(rows=shards), ctx)
    return sorted(ctx.out.glob("*.tar"))


def read(tars: list) -> list[dict]:
    import webdataset

    return list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False))


def test_webdataset_reads_every_sample_back(pool, leaving, memory_shards, memory_context):
    tars = export(memory_context(), memory_shards(pool), rows_per_shard=60)
    samples = {json.loads(s["json"])["uid"]: s for s in read(tars)}
    assert len(samples) == len(leaving)
    for row in leaving.to_pylist():
        sample = samples[row["uid"].hex()]
        (image,) = (sample[s] for s in ("jpg", "png", "webp") if s in sample)
        assert image == row["image"]
        assert sample["txt"].decode() == row["text"]


def test_a_pools_own_column_named_copy_leaves(pool, leaving, memory_shards, memory_context):
    pool = pool.append_column("copy", pool["url"])
    tars = export(memory_context(), memory_shards(pool), columns=("copy",))
    copies = [json.loads(sample["json"])["copy"] for sample in read(tars)]
    assert sorted(copies) == sorted(leaving["url"].to_pylist())


def test_keys_are_the_tars_number_and_four_digits_and_never_cross_tars(
    pool, memory_shards, memory_context
):
    tars = export(memory_context(), memory_shards(pool), rows_per_shard=100)
    assert len(tars) == 2
    assert [tar.name for tar in tars] == [f"{n:05d}.tar" for n in range(len(tars))]
    for tar in tars:
        samples = read([tar])
        assert [s["__key__"] for s in samples] == [
            f"{tar.stem}{i:04d}" for i in range(len(samples))
        ]


def test_a_row_is_written_as_often_as_it_repeats_under_the_resharders_keys(
    pool, leaving, memory_shards, memory_context
):
    """DataComp's resharder writes a uid that is listed k times under the keys uid-0 … uid-(k-1)."""
    times = [(3, 1, 0, None, 2)[i % 5] for i in range(240)]
    given = pool.append_column("repeats", pa.array(times, REPEATS.dtype))
    of = dict(zip(pool["uid"].to_pylist(), times, strict=True))
    expected = Counter()
    for uid in leaving["uid"].to_pylist():
        n = 1 if of[uid] is None else of[uid]
        expected += Counter(f"{uid.hex()}-{j}" for j in range(n)) if n > 1 else Counter()
        expected["plain"] += n == 1
    ctx = memory_context()
    tars = export(ctx, memory_shards(given[:100], given[100:]), rows_per_shard=40)
    samples = [sample for tar in tars for sample in read([tar])]
    keys = [sample["__key__"] for sample in samples]
    plain = [key for key in keys if "-" not in key]
    assert Counter(key for key in keys if "-" in key) + Counter(plain=len(plain)) == expected
    assert all(key.startswith(tar.stem) for tar in tars for key in plain_keys(tar))
    images = {row["uid"].hex(): row["image"] for row in leaving.to_pylist()}
    for sample in samples:
        told = json.loads(sample["json"])
        assert told["key"] == sample["__key__"]
        assert "repeats" not in told, "or a loader would repeat it again"
        (image,) = (sample[s] for s in ("jpg", "png", "webp") if s in sample)
        assert image == images[told["uid"]]
    sizes = [file["rows"] for file in json.loads((ctx.out / "dataset.json").read_text())["files"]]
    assert sizes == [len(read([tar])) for tar in tars]
    assert max(sizes) <= 40
    assert sum(sizes) == sum(expected.values()) > len(leaving)


def test_no_tar_has_a_key_twice_where_rows_share_a_uid(pool, memory_shards, memory_context):
    times = pa.array([2 + i % 2 for i in range(240)], REPEATS.dtype)
    uid = pa.array([bytes([i % 3]) * 16 for i in range(240)], pa.binary(16))
    given = pool.set_column(pool.column_names.index("uid"), "uid", uid)
    given = given.append_column("repeats", times)
    ctx = memory_context()
    tars = export(ctx, memory_shards(given[:100], given[100:]), rows_per_shard=60)
    for tar in tars:
        samples = read([tar])
        keys = [sample["__key__"] for sample in samples]
        assert len(set(keys)) == len(keys) > 3
        assert {key.partition("-")[0] for key in keys} <= {it.as_py().hex() for it in uid}
        assert [json.loads(sample["json"])["key"] for sample in samples] == keys


def plain_keys(tar) -> list[str]:
    return [key for sample in read([tar]) if "-" not in (key := sample["__key__"])]


def test_the_parquet_beside_a_tar_repeats_its_json_and_the_stats_count_it(
    pool, memory_shards, memory_context
):
    (tar,) = export(memory_context(), memory_shards(pool), columns=("score", "language"))
    beside = pq.read_table(tar.with_suffix(".parquet"))
    assert [json.loads(s["json"]) for s in read([tar])] == beside.to_pylist()
    assert {"key", "uid", "caption", "url", "status", "score", "language"} <= set(
        beside.column_names
    )
    stats = json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text())
    assert stats["successes"] == stats["count"] == len(beside)
    assert stats["status_dict"] == {"success": len(beside)}


def test_nan_and_infinity_are_null_in_the_json_also_in_lists(pool, memory_shards, memory_context):
    given = pool[2:3].append_column("odds", pa.array([[0.5, float("nan")]]))
    given = given.append_column("far", pa.array([float("inf")]))
    columns = ("score", "odds", "far")
    (tar,) = export(memory_context(), memory_shards(given), columns=columns)
    (sample,) = read([tar])
    found = json.loads(sample["json"])
    assert [found[name] for name in columns] == [None, [0.5, None], None]


@pytest.mark.parametrize("name", ["key", "status", "error_message", "caption_sources"])
def test_a_column_named_as_a_field_of_the_json_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}', which this export has anyway"):
        WebDataset(columns=(name,))


def test_equal_rows_are_equal_bytes_with_no_time_or_user(pool, memory_shards, memory_context):
    (first,), (again,) = (export(memory_context(), memory_shards(pool)) for _ in range(2))
    assert first.read_bytes() == again.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_the_suffix_is_that_of_the_bytes(pool):
    bodies = pool["image"].drop_null().to_pylist()
    assert {suffix_of(body) for body in bodies} == {"jpg", "png", "webp"}
    assert suffix_of(b"<html>") == "bin"


def test_values_that_json_has_not_are_text(pool, memory_shards, memory_context):
    when = pa.array([0] * 240, pa.timestamp("s"))
    given = pool.append_column("when", when).append_column("other", pool["uid"])
    (tar,) = export(memory_context(), memory_shards(given), columns=("when", "other"))
    first = json.loads(read([tar])[0]["json"])
    assert first["when"].startswith("1970-01-01")
    assert first["other"] == first["uid"]


def test_a_long_caption_and_a_large_image_survive(pool, memory_shards, memory_context):
    long = pa.array(["é" * 500_000] * 2)
    (tar,) = export(memory_context(), memory_shards(pool[1:3].set_column(3, "text", long)))
    with tarfile.open(fileobj=io.BytesIO(tar.read_bytes())) as opened:
        (name,) = (n for n in opened.getnames() if n.endswith(".txt"))
        assert opened.extractfile(name).read().decode() == "é" * 500_000
