import asyncio
import io
import json
import tarfile
from collections import Counter, defaultdict
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.faults import (
    FATAL_LINKS,
    IMAGE_ISSUES,
    LINK_ISSUES,
    OVERLAYS,
    PHRASES,
    TEXT_ISSUES,
)
from clipmill.pipeline.pools.generated import generated_drawings, generated_evaluation
from clipmill.pipeline.pools.plan import pool_rows
from clipmill.pipeline.pools.server import start_server
from clipmill.pipeline.pools.truth import is_usable
from tests.pipeline.pools.conftest import ROWS

SMALL = 40


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "pool"
    build_pool("generated", folder, rows=SMALL)
    return folder


def test_metadata_has_as_many_rows_as_asked_for_sorted_by_uid(pool):
    assert list(pool.metadata) == sorted(pool.truth)
    assert len(pool.metadata) == ROWS
    assert set(pool.metadata[min(pool.metadata)]) == {
        *("uid", "url", "text", "original_width", "original_height", "sha256")
    }
    assert len({row["url"] for row in pool.metadata.values()}) == ROWS


def test_a_pool_of_any_size_has_as_many_rows_as_asked_for():
    drawings, evaluation = generated_drawings(110, 0), generated_evaluation(3, 0)
    for rows in (1, 36, 40, 107):
        planned = pool_rows(drawings, evaluation, 0, 1, 1, rows)
        assert sum(map(len, planned)) == rows


def test_text_and_link_faults_have_the_shares_asked_for(pool):
    for field, shares in (("text_issue", TEXT_ISSUES), ("link_issue", LINK_ISSUES)):
        counts = Counter(row[field] for row in pool.truth.values())
        for issue, share in shares.items():
            # Five standard deviations of a count, and one row that completes a missing kind.
            slack = 5 * (share * (1 - share) / ROWS) ** 0.5 + 1 / ROWS
            assert abs(counts[issue] / ROWS - share) <= slack, issue
            assert field == "text_issue" or counts[issue] > 0, issue


def test_overlays_are_drawn_on_request_on_clean_base_rows_and_their_exact_copies():
    drawings = generated_drawings(ROWS, 0)
    plain, overlaid = (
        {
            row.uid: row
            for group in pool_rows(drawings, [], 0, 1, 1, overlaid=share)
            for row in group
        }
        for share in (0.0, 0.4)
    )
    drawn = {uid for uid, row in overlaid.items() if row.image_issue in OVERLAYS}
    counts = Counter(overlaid[uid].image_issue for uid in drawn)
    assert min(counts[kind] for kind in OVERLAYS) > 0.3 * len(drawn)
    clean = [uid for uid, row in plain.items() if not (row.image_issue or row.dup_kind)]
    assert abs(len(drawn & {*clean}) / len(clean) - 0.4) < 0.1
    assert {overlaid[uid].dup_kind for uid in drawn} == {None, "exact"}
    assert not any(is_usable(overlaid[uid]) for uid in drawn)
    for uid in drawn:
        row = overlaid[uid]
        assert (row.drawn_script in PHRASES) == (row.image_issue == "drawn_text")
        assert replace(row, image_issue=None, drawn_script=None) == plain[uid]
    scripts = Counter(row.drawn_script for row in overlaid.values())
    assert min(scripts[script] for script in PHRASES) > 0.1 * counts["drawn_text"]
    assert all(overlaid[uid] == plain[uid] for uid in plain.keys() - drawn)


def test_a_pool_without_overlays_is_not_taken_for_one_with_them(small):
    assert "overlaid" not in json.loads((small / "pool.json").read_text())
    assert "drawn_script" not in pq.read_schema(small / "truth.parquet").names
    with pytest.raises(RecipeError, match=r"another pool stands there .*overlaid None"):
        build_pool("generated", small, rows=SMALL, overlaid=0.1)
    with pytest.raises(RecipeError, match=r"overlaid=1\.1"):
        build_pool("generated", small, rows=SMALL, overlaid=1.1)


def test_image_faults_are_drawn_on_base_rows(pool):
    counts = Counter(row["image_issue"] for row in pool.truth.values())
    for issue, share in IMAGE_ISSUES.items():
        assert abs(counts[issue] / ROWS - 0.75 * share) < 0.02, issue
    assert counts["oversized"] >= 1
    assert counts["bomb"] >= 1
    assert {row["dup_kind"] for row in pool.truth.values() if row["image_issue"]} <= {None, "exact"}


def test_languages_and_copies_have_about_the_shares_of_the_real_pools(pool):
    langs = Counter(row["lang"] for row in pool.truth.values())
    assert 0.5 < langs["en"] / ROWS < 0.7
    assert 0.2 < (langs["de"] + langs["fr"]) / ROWS < 0.4
    kinds = Counter(row["dup_kind"] for row in pool.truth.values())
    assert 0.02 < kinds["exact"] / ROWS < 0.08
    assert 0.04 < kinds["near"] / ROWS < 0.11
    assert kinds["repost"] > 0
    assert sum(row["eval_near"] for row in pool.truth.values()) == round(0.014 * ROWS)


def test_half_the_rows_are_good_and_each_cluster_has_one_at_most(pool):
    good = [row["dup_cluster"] for row in pool.truth.values() if row["is_good"]]
    assert len(good) == len(set(good))
    assert 0.4 < len(good) / ROWS < 0.6
    usable = {row["dup_cluster"] for row in pool.truth.values() if row["usable"]}
    assert set(good) == usable


def test_a_row_is_usable_exactly_if_nothing_is_wrong_with_it(pool):
    for row in pool.truth.values():
        faults = (row["text_issue"], row["image_issue"], row["link_issue"] in FATAL_LINKS)
        assert row["usable"] == (not any(faults) and not row["eval_near"])


def test_a_swapped_caption_is_of_another_concept_and_others_are_true(pool):
    for uid, row in pool.truth.items():
        text = pool.metadata[uid]["text"]
        if row["text_issue"] == "swapped":
            assert text != row["text_true"]
        elif row["text_issue"] is None:
            assert row["text_true"] in text
    hard = [
        row["swapped_in_group"] for row in pool.truth.values() if row["text_issue"] == "swapped"
    ]
    assert 0.3 < sum(hard) / len(hard) < 0.8


def test_clusters_join_equal_bytes_and_copies_and_nothing_else(pool):
    by_digest = defaultdict(set)
    for uid, row in pool.truth.items():
        by_digest[pool.metadata[uid]["sha256"]].add(row["dup_cluster"])
    assert all(len(clusters) == 1 for clusters in by_digest.values())
    sizes = Counter(row["dup_cluster"] for row in pool.truth.values())
    for row in pool.truth.values():
        assert row["cluster_size"] == sizes[row["dup_cluster"]]
    clusters_of = defaultdict(set)
    for row in pool.truth.values():
        if row["image_issue"] is None:
            clusters_of[row["source"], row["image_key"]].add(row["dup_cluster"])
    assert all(len(clusters) == 1 for clusters in clusters_of.values())


def test_a_repost_says_it_in_other_words(pool):
    first = {
        row["image_key"]: row["text_true"]
        for row in pool.truth.values()
        if row["dup_kind"] is None and not row["eval_near"]
    }
    reposts = [row for row in pool.truth.values() if row["dup_kind"] == "repost"]
    assert reposts
    assert all(row["text_true"] != first[row["image_key"]] for row in reposts)


def test_trusted_pairs_are_clean_apart_and_no_evaluation_caption(pool):
    assert len(pool.trusted) == ROWS // 6
    assert not pool.trusted.keys() & pool.truth.keys()
    asked = set()
    with tarfile.open(pool.folder / "eval/generated_retrieval/test/0.tar") as tar:
        for entry in tar:
            if entry.name.endswith(".txt"):
                asked |= set(tar.extractfile(entry).read().decode().splitlines())
    for row in pool.trusted.values():
        file = (pool.folder / "www" / urlsplit(row["url"]).path.lstrip("/")).read_bytes()
        assert sha256(file).hexdigest() == row["sha256"]
        assert row["text"]
        assert row["text"] not in asked


def test_evaluation_sets_have_the_layout_of_clip_benchmark(pool):
    home = pool.folder / "eval" / "generated_shapes"
    names = (home / "classnames.txt").read_text().splitlines()
    assert "{c}" in (home / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert (home / "test" / "nshards.txt").read_text() == "1\n"
    with tarfile.open(home / "test" / "0.tar") as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}
    keys = {name.partition(".")[0] for name in files}
    assert len(keys) == ROWS // 10
    for key in keys:
        assert int(files[f"{key}.cls"]) < len(names)
        with Image.open(io.BytesIO(files[f"{key}.png"])) as picture:
            picture.load()


def test_the_server_answers_every_row_as_the_truth_says(pool):
    with start_server(pool.folder) as url:
        answers = asyncio.run(fetch_all(url, pool))
    for uid, row in pool.truth.items():
        status, body, headers = answers[uid]
        intact = sha256(body).hexdigest() == pool.metadata[uid]["sha256"]
        issue = row["link_issue"]
        if issue in ("404", "403", "410", "500"):
            assert status == int(issue), uid
        elif issue in ("unresolvable", "refused", "hang", "redirect_loop"):
            assert status == 0, (uid, issue)
        elif issue in ("html", "truncated", "changed", "corrupt", "svg"):
            assert status == 200, uid
            assert not intact, uid
        else:
            assert (status, intact) == (200, True), (uid, issue)
        if issue == "opt_out":
            assert headers["X-Robots-Tag"].startswith("no")


async def fetch_all(url: str, pool) -> dict:
    """(status, body, headers) by uid; status 0 where no answer came."""
    gate = asyncio.Semaphore(32)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:

        async def fetch(row):
            parts = urlsplit(row["url"])
            # Built for the default port, served on a free one.
            target = url + parts.path if parts.port == 8765 else row["url"]
            async with gate:
                for _ in range(2):  # a 503 goes away
                    try:
                        async with session.get(target) as answer:
                            found = answer.status, await answer.read(), answer.headers
                    except (aiohttp.ClientError, TimeoutError):
                        return row["uid"], (0, b"", {})
                    if found[0] != 503:
                        break
                return row["uid"], found

        return dict(await asyncio.gather(*map(fetch, pool.metadata.values())))


@pytest.mark.slow("two processes draw")
def test_bytes_do_not_depend_on_the_number_of_workers(small, tmp_path):
    build_pool("generated", tmp_path / "pool", rows=SMALL, workers=2)
    assert digests(tmp_path / "pool") == digests(small)


def test_another_seed_is_another_pool(small, tmp_path):
    build_pool("generated", tmp_path / "pool", seed=1, rows=SMALL)
    first, other = digests(small), digests(tmp_path / "pool")
    assert first["truth.parquet"] != other["truth.parquet"]
    assert not {path for path in first if "/s0" in path} & {path for path in other if "/s0" in path}


def test_a_complete_pool_is_left_alone(small):
    before = (small / "truth.parquet").stat().st_mtime_ns
    build_pool("generated", small, rows=SMALL)
    assert (small / "truth.parquet").stat().st_mtime_ns == before


def test_an_interrupted_build_starts_over(small, tmp_path):
    out = tmp_path / "pool"
    (out / "www" / "s00").mkdir(parents=True)
    (out / "www" / "s00" / "left.png").write_bytes(b"over")
    (out / "lists").mkdir()  # of a pool of photos
    (out / "lists" / "swapped_0.txt").touch()
    (out / "unfinished").touch()
    build_pool("generated", out, rows=SMALL)
    assert digests(out) == digests(small)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"seed": 1}, "another pool"),
        ({"port": 1234}, "another pool"),
        ({"rows": 7}, "another pool"),
    ],
)
def test_another_pool_in_the_folder_is_not_overwritten(small, options, found):
    with pytest.raises(RecipeError, match=found):
        build_pool("generated", small, **{"rows": SMALL, **options})


def test_a_strangers_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years")
    with pytest.raises(RecipeError, match="holds other files: thesis"):
        build_pool("generated", tmp_path, rows=SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "five years"


def test_only_the_generated_pool_has_a_size_to_choose(tmp_path):
    with pytest.raises(RecipeError, match="its packages fix"):
        build_pool("demo", tmp_path / "pool", rows=SMALL)


def test_the_port_stands_in_the_urls_and_in_pool_json(tmp_path):
    build_pool("generated", tmp_path / "pool", rows=SMALL, port=4321)
    assert json.loads((tmp_path / "pool" / "pool.json").read_text())["port"] == 4321
    assert "unfinished" not in {file.name for file in (tmp_path / "pool").iterdir()}


@pytest.mark.parametrize("rows", [0, -5])
def test_a_pool_of_no_rows_is_refused(rows, tmp_path):
    with pytest.raises(RecipeError, match=f"rows={rows}"):
        build_pool("generated", tmp_path / "pool", rows=rows)
    assert not (tmp_path / "pool").exists()
