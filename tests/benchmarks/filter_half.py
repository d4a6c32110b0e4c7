"""What the filter network is worth on vendors that it has never seen, by training on what it keeps.

    python -m tests.benchmarks.filter_half POOL FOLDER    (the full pool, drawn and served)

The pool's vendors are parted: those of FOREIGN, which no trusted pair is of, are the pool that is
curated; the others are a second pool. Two networks are fitted: `stranger` to the trusted pairs and
the second pool, so that it has seen nothing of the foreign vendors, and `own` to the trusted pairs
and the curated pool itself, as the recipes do. Both keep as many of the rows that the rules leave.
`clipmill bench` then trains on raw, on what the rules leave, and on each: five seeds, equal samples
seen, scored on drawings of a vendor that is in no pool. Minutes on two cores; run again, all is
found done.
"""

import json
import sys
from pathlib import Path

import polars as pl

from pipeline.cli import main as clipmill

FOREIGN = (
    "@iconify-json/fxemoji",
    "@iconify-json/game-icons",
    "crossfire-client-images",
    "fritzing-parts",
    "openclipart-png",
    "python-sklearn-doc",
    "sweethome3d-furniture",
    "tuxpaint-stamps-default",
)
DOWNLOAD = """\
    uses: download.images
    resize: keep_ratio_largest
    image_size: 256
    verify_sha256: true
    allow_private_addresses: true
    max_per_host: 64
    timeout_s: 3.0
    deadline_s: 6.0
    retries: 1
"""
RULES = """\
    uses: select.where
    where: >
      language = 'en'
      AND caption_words >= 2
      AND NOT caption_is_filename
      AND caption_mojibake = 0
      AND caption_markup = 0
      AND min_side >= 32
      AND aspect_ratio <= 3
      AND luma_std > 4
      AND duplicate_of IS NULL
"""
RULED = """\
  {at}:          {{uses: ingest.datacomp, path: {folder}/{at}/metadata, shard_rows: 2500}}
  {at}_language: {{uses: annotate.language, from: {at}}}
  {at}_caption:  {{uses: annotate.caption, from: {at}}}
  {at}_images:
    from: {at}
{download}
  {at}_look:     {{uses: annotate.image, from: {at}_images}}
  {at}_same:     {{uses: dedup.exact, from: {at}_images}}
  {at}_rules:
    from: [{at}_language, {at}_caption, {at}_look, {at}_same]
{rules}
  {at}_features: {{uses: embed.features, from: {at}_images, only: {at}_rules}}
"""
SCORED = """\
  {net}:       {{uses: train.filter_network, from: [trusted_features, {learnt}_features]}}
  {net}_emb:   {{uses: embed.filter_network, from: foreign_features, model: "stage:{net}"}}
  {net}_score: {{uses: score.clip_score, from: {net}_emb}}
  {net}_best:
    uses: select.where
    from: [foreign_rules, {net}_score]
    top: {{column: clip_score, fraction: 0.7}}
"""
RECIPE = """\
seed: 0
stages:
  trusted: {{uses: ingest.datacomp, path: {pool}/trusted/metadata}}
  trusted_images:
    from: trusted
{download}
  trusted_features: {{uses: embed.features, from: trusted_images}}
{ruled}
{scored}
  raw: {{uses: export.parquet, from: foreign_images}}
"""


def main(pool: Path, folder: Path) -> None:
    part(pool, folder)
    recipe = folder / "half.yaml"
    halves = ("home", "foreign")
    ruled = [RULED.format(at=at, folder=folder, download=DOWNLOAD, rules=RULES) for at in halves]
    scored = [
        SCORED.format(net="stranger", learnt="home"),
        SCORED.format(net="own", learnt="foreign"),
    ]
    given = {"ruled": "".join(ruled), "scored": "".join(scored)}
    recipe.write_text(RECIPE.format(pool=pool, download=DOWNLOAD, **given))
    run = folder / "run"
    assert clipmill(["run", str(recipe), "--out", str(run)]) == 0
    stages = {"rules": "foreign_rules", "stranger": "stranger_best", "own": "own_best"}
    arms = [f"{arm}={run}:{stage}" for arm, stage in stages.items()]
    sets = ["--set", "samples_seen=30208", "--set", "warmup_steps=10"]
    tasks = ["--tasks", str(pool / "eval"), "--out", str(folder / "bench")]
    assert clipmill(["bench", *arms, *tasks, *sets]) == 0


def part(pool: Path, folder: Path) -> None:
    """Writes metadata of the foreign vendors' rows and of all others'."""
    rows = pl.read_parquet(pool / "metadata/*.parquet")
    truth = pl.read_parquet(pool / "truth.parquet", columns=["uid", "source"])
    is_foreign = pl.col("source").is_in(FOREIGN)
    joined = rows.join(truth, on="uid", how="left", maintain_order="left", validate="1:1")
    for at, here in (("foreign", is_foreign), ("home", ~is_foreign)):
        path = folder / at / "metadata" / "00000000.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            joined.filter(here).select(rows.columns).write_parquet(path)
        print(json.dumps({at: joined.filter(here)["source"].value_counts(sort=True).rows()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
