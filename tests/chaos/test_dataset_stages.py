"""Deduplication and balancing on S3, on Ray, and killed on the way: the values of a calm run."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.metadata.storage import Storage
from clipmill.metadata.uid import uid_of
from tests.chaos.conftest import nursery_of
from tests.engine_stages.harness import clipmill_run, meaning

pytestmark = pytest.mark.chaos

RECIPE = Path(__file__).parent / "near.yaml"
ROWS, KILLS = 100, 8
WORDS = ["red", "blue", "fox", "hare", "on", "a", "hill", "by", "the", "sea"]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[str, ...]:
    """Settings that say where the recipe's rows, evaluation captions and concepts lie."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, 6))) for _ in range(ROWS)]
    rows = {
        "uid": [uid_of(f"https://test/{i}", text).hex() for i, text in enumerate(texts)],
        "url": [f"https://test/{i}" for i in range(ROWS)],
        "text": texts,
    }
    vector_ND = rng.standard_normal((12, 512))[rng.integers(0, 12, ROWS)]
    vector_ND += 0.1 * rng.standard_normal((ROWS, 512))
    flips_N = np.uint64(1) << rng.integers(0, 64, ROWS, dtype=np.uint64)
    code_N = rng.integers(0, 2**64, 9, dtype=np.uint64)[rng.integers(0, 9, ROWS)] ^ flips_N
    (folder / "pool").mkdir()
    (folder / "tasks").mkdir()
    pq.write_table(pa.table(rows), folder / "pool" / "0.parquet")
    np.savez(folder / "pool" / "0.npz", b32_img=vector_ND.astype(np.float16))
    codes = pa.table({**rows, "phash": pa.array(code_N)})
    pq.write_table(codes, folder / "codes.parquet")
    pq.write_table(pa.table({"text": texts[:4]}), folder / "tasks" / "seen.parquet")
    wanted = pa.table({"b32_img": list(vector_ND[:5].astype(np.float32))})
    wanted = wanted.replace_schema_metadata({"clipmill.model": "any"})
    pq.write_table(wanted, folder / "wanted.parquet")
    (folder / "concepts.json").write_text(json.dumps(WORDS))
    settings = {
        "pool.path": folder / "pool",
        "codes.path": folder / "codes.parquet",
        "leaks.tasks": folder / "tasks",
        "wanted.targets": folder / "wanted.parquet",
        "matched.concepts": folder / "concepts.json",
        "even.concepts": folder / "concepts.json",
    }
    return tuple(f"{key}={value}" for key, value in settings.items())


@pytest.fixture(scope="module")
def runs(given, tmp_path_factory):
    with nursery_of(RECIPE, tmp_path_factory.mktemp("nursery"), *given) as nursery:
        yield nursery


@pytest.mark.drawn(one_in=3, cpu_s=30)
def test_killed_all_along_and_run_again_the_result_is_the_same(runs, calm, tmp_path):
    whole, expected = calm
    for number in np.linspace(1, len(whole.points), KILLS + 2, dtype=int)[1:-1]:
        killed = runs.run(tmp_path / str(number), fault=f"any:{number}")
        assert killed.killed, killed.output
        again = runs.run(tmp_path / str(number))
        assert again.code == 0, again.output
        assert meaning(Storage(str(tmp_path / str(number)))) == expected, killed.points[-1]
        assert killed.units + again.units <= whole.units + 1


@pytest.mark.drawn(one_in=3, cpu_s=20)
def test_on_s3_objects_are_those_of_a_local_run(runs, calm, bucket):
    ended = runs.run(bucket.uri("near"))
    assert ended.code == 0, ended.output
    assert meaning(Storage(bucket.uri("near"))) == calm[1]


@pytest.mark.drawn(one_in=3, cpu_s=30)
def test_on_ray_files_are_those_of_a_local_run(given, calm, ray_head, tmp_path):
    more = (*(text for setting in given for text in ("--set", setting)), *ray_head.arguments)
    place, env = (RECIPE, tmp_path / "run", tmp_path / "faults"), ray_head.environment
    ended = clipmill_run(*place, *more, workers=2, env=env)
    assert ended.code == 0, ended.output
    assert meaning(Storage(str(tmp_path / "run"))) == calm[1]
