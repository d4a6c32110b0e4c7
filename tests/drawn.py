"""A finished run over a folder of drawn pictures: selects, exports, models, an evaluation."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw

from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState

HOSTILE = """"><img src=x onerror=alert(1)> a tale of <script>alert(2)</script> & 'quotes'"""
ROWS = 60
TASKS = {  # of captions, by key
    "numbers": {
        "n/7": "drawing number 7",
        "n/18": "Drawing number 18",
        "n/100": "drawing number 100",
        "n/none": "no number",  # too short to compare
    },
    "tales": {"t/1": HOSTILE},
}
STAGES = """
pool:    {uses: ingest.image_folder, path: none, shard_rows: 25}
caption: {uses: annotate.caption, from: pool}
worth:   {uses: select.where, from: caption, where: caption_words >= 2}
look:    {uses: annotate.image, from: pool, only: worth}
subset:
  uses: select.where
  from: [worth, look]
  where: min_side >= 30 AND aspect_ratio <= 3
  top: {column: luma_std, fraction: 0.8}
same:    {uses: dedup.exact, from: pool, by: caption}
hash:    {uses: annotate.phash, from: pool}
near:    {uses: dedup.phash, from: hash, max_distance: 10}
leaks:   {uses: dedup.against, from: pool, compare: caption, size: 3, tasks: ""}
raw:     {uses: export.parquet, from: pool}
shards:  {uses: export.parquet, from: subset}
raw_models:  {uses: proof.learn, from: pool, data: raw, seeds: [0, 1]}
best_models: {uses: proof.learn, from: pool, data: shards, seeds: [0, 1]}
raw_scores:  {uses: proof.grade, from: pool, model: "stage:raw_models", acc1: [0.2, 0.22]}
best_scores: {uses: proof.grade, from: pool, model: "stage:best_models", acc1: [0.42, 0.44]}
"""
CAPTIONED = """
pool:   {uses: ingest.image_folder, path: none, shard_rows: 25}
stars:  {uses: probe.says, from: pool, said: ["star", "a picture of * by a patient hand"]}
moons:  {uses: probe.says, from: pool, said: ["moon <b>*</b>"], label: short}
judged: {uses: probe.judged, from: [stars, moons], captions: [stars.captions, moons.captions]}
best:   {uses: probe.chosen, from: judged, min_words: 4}
"""
CLUSTERED = """
pool:     {uses: ingest.image_folder, path: none, shard_rows: 25}
caption:  {uses: annotate.caption, from: pool}
look:     {uses: annotate.image, from: pool}
worth:    {uses: select.where, from: [caption, look], where: caption_words >= 2}
emb:      {uses: embed.clip, from: pool, model: reference}
clusters: {uses: cluster.kmeans, from: emb, clusters: 9}
control:  {uses: select.where, from: [worth, look], top: {column: luma_std, fraction: 0.5}}
even:     {uses: mine.evened, from: [worth, clusters], fraction: 0.5}
capped:   {uses: select.sample, from: [worth, clusters], per: cluster_id, at_most: 1}
dense:
  uses: select.density
  from: [worth, clusters]
  centroids: "stage:clusters"
  fraction: 0.5
"""


def caption(row: int) -> str:
    """One word for every tenth; the rest a sentence, every fourth hostile."""
    if row % 10 == 0:
        return "word"
    return HOSTILE if row % 4 == 1 else f"drawing number {row}"


def draw(path: Path, row: int) -> None:
    """A disc on white; each 7th small, each 11th a banner, each 13th broken."""
    width, height = (20, 20) if row % 7 == 3 else (400, 60) if row % 11 == 5 else (80, 64)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((2, 2, height - 4, height - 4), fill=(5 * row % 256, 4 * row % 256, 90))
    picture.save(path)
    if row % 13 == 6:
        path.write_bytes(path.read_bytes()[:60])


def run(folder: Path, text: str = STAGES) -> RunState:
    """The state of the finished run of these stages; tests/own_stages must be on the path."""
    (folder / "pool").mkdir()
    lines = []
    for row in range(ROWS):
        draw(folder / "pool" / f"{row:03}.png", row)
        lines.append(json.dumps({"file_name": f"{row:03}.png", "text": caption(row)}))
    (folder / "pool" / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "tasks").mkdir()
    for task, keys in TASKS.items():
        table = pa.table({"key": list(keys), "text": list(keys.values())})
        pq.write_table(table, folder / "tasks" / f"{task}.parquet")
    stages = yaml.safe_load(text)
    stages["pool"]["path"] = str(folder / "pool")
    if "leaks" in stages:
        stages["leaks"]["tasks"] = str(folder / "tasks")
    plan = make_plan(Recipe(name="drawn", path="drawn.yaml", seed=0, stages=stages))
    outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    return outcome.state


def of(text: str) -> Callable[[Path], RunState]:
    """What fills a folder with the pool, and with a finished run of these stages."""
    return lambda folder: run(folder, text)
