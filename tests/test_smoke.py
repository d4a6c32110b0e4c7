"""The smoke recipe: what funnel, show, why and score say of its rows adds up.

The pool's server answers alike each time, but for its slow faults: rows that hang or drip are left
out here, as a busy machine may cut them short (tests/stages/download covers them).
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from clipmill.pipeline.cli import main
from clipmill.pipeline.pools.build import build_pool
from clipmill.pipeline.pools.server import start_server
from clipmill.pipeline.run_folder.state import latest
from tests import same_counts
from tests.artefacts import linked

SLOW = ("hang", "slow", "timeout")


def build(folder: Path) -> None:
    """A pool of some 300 rows, those with a slow link left out, and its run in this process."""
    port = 20_000 + zlib.crc32(bytes(folder)) % 10_000  # which no system gives to others
    build_pool("generated", folder / "pool", rows=300, workers=1, port=port)
    truth = pl.read_parquet(folder / "pool" / "truth.parquet")
    slow = truth.filter(pl.col("link_issue").is_in(SLOW))["uid"]
    for path in (folder / "pool" / "metadata").glob("*.parquet"):
        pl.read_parquet(path).filter(~pl.col("uid").is_in(slow.to_list())).write_parquet(path)
    with start_server(folder / "pool", port):
        assert main([*map(str, command(folder / "pool", folder / "run")), "--workers", "0"]) == 0


@pytest.fixture(scope="module")
def smoke(artefacts) -> Path:
    return artefacts("smoke", build)


@pytest.fixture(scope="module")
def pool(smoke) -> Iterator[Path]:
    """The pool, served where its links point."""
    pool = smoke / "pool"
    with start_server(pool, json.loads((pool / "pool.json").read_text())["port"]):
        yield pool


@pytest.fixture(scope="module")
def plain(smoke) -> Path:
    """Its finished run."""
    return smoke / "run"


def command(pool: Path, out: Path) -> list[object]:
    settings = (f"pool.path={pool}/metadata", "images.timeout_s=20", "images.deadline_s=30")
    return ["run", "smoke", "--out", out, *(word for it in settings for word in ("--set", it))]


def values(out: Path, stage: str) -> pl.DataFrame:
    """All rows of a stage by uid."""
    files = sorted((out / "stages").glob(f"{stage}-*/??????-*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files], how="vertical_relaxed").sort("uid")


@pytest.mark.slow("asks why of a row of every end")
def test_funnel_adds_up_and_why_speaks_of_every_kind_of_end(clipmill, plain):
    found = clipmill("funnel", "--run", plain, "--json").json
    (end,) = found["ends"]
    assert end["kept"] + sum(cause["rows"] for cause in end["causes"]) == end["rows"] > 250
    assert {cause["stage"] for cause in end["causes"]} >= {"worth", "images", "subset"}
    subset = values(plain, "subset")
    for row in subset.group_by("reason").first().iter_rows(named=True):
        said = clipmill("why", row["uid"].hex(), "--run", plain)
        assert said.code == 0
        wanted = "kept by 'subset'" if row["keep"] else "dropped by '"
        assert wanted in said.out


def test_show_counts_the_rows_of_every_stage_and_reason_as_the_funnel_does(plain):
    assert same_counts.shown(latest(str(plain))) > 40


def test_score_says_what_became_of_every_planted_row(clipmill, smoke, tmp_path):
    pool, plain = smoke / "pool", linked(smoke / "run", tmp_path / "run")  # what it finds is kept
    found = clipmill("pool", "score", pool, "--run", plain, "--json").json
    truth = pl.read_parquet(pool / "truth.parquet")
    assert [judged["stage"] for judged in found["selects"]] == ["worth", "subset"]
    for judged in found["selects"]:
        assert judged["rows"] + judged["absent"] == len(truth)
        assert judged["kept"] == len(values(plain, judged["stage"]).filter("keep"))
        for row in judged["planted"]:
            assert row["kept"] + sum(row["caught"].values()) == row["rows"]
    planted = {row["kind"]: row for row in found["selects"][-1]["planted"]}
    dead = planted["link_issue: 404"]
    assert dead["kept"] == 0
    assert {cause.partition(":")[0] for cause in dead["caught"]} <= {"images", "worth"}
    for harmless in ("redirect", "503_once", "wrong_content_type"):  # none is lost to its link
        assert not any("images" in cause for cause in planted[f"link_issue: {harmless}"]["caught"])
    assert planted["text_issue: swapped"]["kept"] > 0  # no stage here looks for it
    good = planted["good, English"]
    assert good["kept"] > good["rows"] / 2

    # A copy whose original went stands in for it: no cluster counts more than it has to spare.
    kept = values(plain, "subset").filter("keep")["uid"].to_list()
    usable = truth.filter(pl.col("usable") & pl.col("uid").is_in([uid.hex() for uid in kept]))
    spare = len(usable) - usable["dup_cluster"].n_unique()
    copies = [row for kind, row in planted.items() if kind.startswith("duplicate")]
    originals = usable.filter(pl.col("dup_kind").is_null())
    assert sum(row["kept"] for row in copies) == spare - (
        len(originals) - originals["dup_cluster"].n_unique()
    )
