"""A finished run of every stage, and what its stages read and wrote.

uids and captions are the generated pool's; images are drawn here, byte by byte, and the links and
their faults are few and fast: what is stored depends on the stages, and on no encoder's version.
"""

import contextlib
import csv
import gc
import hashlib
import io
import json
import struct
import tarfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from clipmill.metadata.concepts.load import concept_list, of_entries, save
from clipmill.metadata.passes import read_stage
from clipmill.metadata.schema import REASON, UID, URL
from clipmill.metadata.storage import Storage
from clipmill.pipeline.engine.run import run_plan
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.executors.local import LocalExecutor
from clipmill.pipeline.planning.described import example_of, recipe_of
from clipmill.pipeline.planning.plan import Plan, make_plan
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import Recipe, load_recipe
from clipmill.pipeline.planning.settings import known_uses, stage_class
from clipmill.pipeline.pools.server import BEHAVIOUR, start_server
from clipmill.pipeline.progress import Lines
from clipmill.pipeline.run_folder.state import RunState, latest
from clipmill.pipeline.stage import edges_taken
from clipmill.stages.ops.images.pixels import PIXELS
from tests.stages.networks import colours, marks, written
from tests.stages.select.wordnet import write_wordnet

RECIPE = Path(__file__).parent / "recipes" / "every_stage.yaml"
OURS = tuple(known_uses())  # now: tests that bring stages of their own add to the path
SOURCES = ("pool", "list", "rows", "folder", "tars", "named")
# Exact on one kind of processor only.
ON_TORCH = (
    *("embed.features", "embed.filter_network"),
    *("annotate.onnx", "annotate.head", "annotate.watermark", "annotate.nsfw"),
    *("annotate.text_boxes", "annotate.faces", "annotate.blur"),
)
CONCEPTS = {
    "en": ["circle", "square", "star", "red circle", "blue", "and", "icon", "pink arrow"],
    "de": ["Kreis", "in", "in Rot", "Stern"],
    "fr": ["cercle", "de couleur", "rouge"],
}
WHOLE = 1 << 30  # rows: a shard in one batch
FAULTS: dict[int, dict[str, Any]] = {  # by the row's number in the pool
    3: {"status": 404},
    8: {"status": 403},
    14: {"status": 500},
    21: {"redirect": "/022.bmp"},
    33: {"redirect": "/nowhere.bmp"},
    40: {"headers": {"X-Robots-Tag": "noai"}},
}
PAGE, CUT, NO_IMAGE, NO_CAPTION = 27, 44, 50, 61  # rows whose file or caption is not as it should


@dataclass(frozen=True)
class Finished:
    """A run that is done, the port that its links name, and the one where they are served now."""

    state: RunState
    port: int
    served_at: int = 0

    @property
    def plan(self) -> Plan:
        return self.state.plan

    def stage_of(self, uses: str) -> PlannedStage:
        """The recipe's first stage of this kind; else the line that it lacks."""
        for planned in self.plan.stages.values():
            if planned.uses == uses:
                return planned
        line = recipe_of(uses).splitlines()[-1]
        raise LookupError(f"its example does not do here: add a line to {RECIPE.name}, as\n{line}")

    def read(self, planned: PlannedStage) -> pa.Table:
        """All rows of a stage's input, as its function gets them."""
        rows = self.state.inputs(planned)
        table = pa.concat_tables(rows.table(shard) for shard in range(len(rows)))
        if PIXELS.name in table.column_names:
            at = table.column_names.index(PIXELS.name)
            table = table.set_column(at, PIXELS.name, PIXELS.derive(table[PIXELS.name]))
        if URL.name in table.column_names:
            at, ports = table.column_names.index(URL.name), (self.port, self.served_at)
            then, now = (f"127.0.0.1:{port}/" for port in ports)
            table = table.set_column(at, URL.name, pc.replace_substring(table[URL.name], then, now))
        return table.select([UID.name, *planned.bindings[0]])

    def written(self, planned: PlannedStage) -> pa.Table:
        """All rows of a stage: uid, its own columns, its reason."""
        stage, folder = self.state.stages[planned.name], self.state.stored[planned.name].folder
        names = [UID.name, *(column.name for column in planned.stage.writes), REASON.name]
        shards = [
            table
            for shard in sorted(stage.shards)
            for table in read_stage(folder, stage.shards[shard], names, WHOLE)
        ]
        return pa.concat_tables(shards).unify_dictionaries()

    def everything(self, planned: PlannedStage) -> list[str]:
        """A stage's rows and other files as text to be compared with another run's of this machine,
        whatever the order of the rows and the files that exports have cut them into."""
        out = Path(self.state.stages[planned.name].folder.path, "out")
        rows = self.written(planned).to_pylist() if planned.gives_rows else self.values(planned)
        if not planned.gives_data:
            files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".md")
            rows += [{path.name: content_of(path)} for path in files]
        return sorted(repr(unfiled(row)).replace(f":{self.port}/", ":8765/") for row in rows)

    def values(self, planned: PlannedStage) -> list[dict[str, Any]]:
        """A stage's rows as plain values: what it stands for, whatever file they lie in."""
        if planned.gives_rows:
            rows = self.written(planned).to_pylist()
        elif planned.gives_data and planned.uses != "evaluate.zero_shot":
            rows = list(exported(Path(self.state.stages[planned.name].folder.path, "out")))
        elif planned.uses == "evaluate.leaks":
            folder = Path(self.state.stages[planned.name].folder.path, "out")
            leaks = pq.read_table(folder / "leaks.parquet")
            rows = leaks.drop_columns(["file", "position"]).to_pylist()  # the export's own
        else:
            outputs = self.state.stages[planned.name].manifest.outputs
            return [{"file": name} for name, _ in outputs]  # their values are their processor's
        if planned.uses in ON_TORCH:
            rows = [
                {n: v if n in ("uid", "reason") else v is None for n, v in row.items()}
                for row in rows
            ]
        if planned.stage.determinism == "recorded":
            rows = [{name: row.get(name) for name in ("uid", "reason", "sha256")} for row in rows]
        text = json.dumps(rows, default=plain).replace(f":{self.port}/", ":8765/")
        return json.loads(text)


def holds(
    law: Callable[[Any], object], stages: Iterable[tuple[str, Any]], kinds: Iterable[str]
) -> None:
    """Asks the law of each stage, named by what it uses; ends with all that is wrong.

    A law may give how much it has looked at. A kind of which it has seen nothing is wrong too.
    """
    wrong, visited = [], set()
    for uses, stage in stages:
        looked_at = None
        try:
            looked_at = law(stage)
        except Exception as error:
            wrong.append(f"{uses}: {''.join(traceback.format_exception(error, limit=-2))}")
        if looked_at is None or looked_at:
            visited.add(uses)
    wrong += [f"{uses}: not visited" for uses in sorted({*kinds} - visited)]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


FILED = ("sample_index", "file", "position", "data")  # where in an export's files, and their digest


def unfiled(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what the files of an export decide, in its JSON too."""
    inside = {name: unfiled(it) for name, it in row.items() if isinstance(it, dict)}
    return {name: it for name, it in (row | inside).items() if name not in FILED}


def content_of(path: Path) -> Any:
    """What a file beside rows holds, whatever order its own rows have."""
    if path.suffix == ".parquet":
        return sorted(repr(unfiled(row)) for row in pq.read_table(path).to_pylist())
    return unfiled(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


@contextlib.contextmanager
def served(generated: Path, folder: Path) -> Iterator[int]:
    """The port at which the rows' images are served."""
    write_site(rows_of(generated), folder)
    with start_server(folder) as url:
        yield int(url.rpartition(":")[2])


def run(generated: Path, folder: Path, port: int, files: int, shard_rows: int) -> Finished:
    """Every stage over the rows, in so many source files, in another order for each number."""
    plan = make_plan(load_recipe(str(write_run(generated, folder, port, files, shard_rows))))
    with left_to_a_search() as left:
        outcome = run_plan(plan, Storage(str(folder / "run")), LocalExecutor(0), Lines())
    assert outcome.complete, outcome.stopped
    (folder / "left").write_text("\n".join(left))
    (folder / "port").write_text(str(port))
    return Finished(outcome.state, port, port)


@contextlib.contextmanager
def left_to_a_search() -> Iterator[list[str]]:
    """Lists networks, maps of files and what finds concepts that only a search would free.

    Without what a first import left: errors that libraries keep hold the stack they were raised in.
    Openers of urllib are circles. What is there before is held: other tests may have left it.
    """
    left: list[str] = []
    gc.collect()
    there = gc.get_objects()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield left
        gc.collect()
        alone = {id(it): it for it in gc.garbage}
        of_stacks = [it for it in gc.garbage if type(it) is FrameType]  # a proxy may point nowhere
        while of_stacks:
            held = (alone.pop(id(it), None) for it in gc.get_referents(*of_stacks))
            of_stacks = [it for it in held if it is not None]
        kinds = Counter(f"{type(it).__module__}.{type(it).__qualname__}" for it in alone.values())
        ours = (f"clipmill.stages.{name}." for name in ("annotate", "clip", "models", "readers"))
        of_ours = (*ours, "clipmill.metadata.", "numpy.memmap", "onnxruntime.", "torch.nn.")
        left += sorted(
            f"{count} {kind}" for kind, count in kinds.items() if kind.startswith(of_ours)
        )
    finally:
        gc.set_debug(0)
        del there
        gc.garbage.clear()
        gc.enable()


def whole(generated: Path, port: int) -> Callable[[Path], Finished]:
    """What fills a folder with a run of one shard for each root."""
    return lambda folder: run(generated, folder, port, 1, 120)


def opened(folder: Path, served_at: int) -> Finished:
    """The run that `run` left in a folder."""
    return Finished(latest(str(folder / "run")), int((folder / "port").read_text()), served_at)


def write_run(generated: Path, folder: Path, port: int, files: int, shard_rows: int) -> Path:
    """The recipe of that run, beside its source files."""
    rows = sorted(rows_of(generated), key=lambda row: (row["number"] * 7) % (13 * files))
    rows = [{**row, "url": row["url"].format(port=port)} for row in rows]
    write_sources(rows, folder, files)
    recipe = with_examples(load_recipe(str(RECIPE)), OURS)
    concepts, tasks = str(folder / "concepts.parquet"), str(generated / "eval")
    places = {"concepts": concepts, "tasks": tasks, "targets": tasks}
    places["wordnet"] = write_wordnet(folder / "wordnet")
    weights = {"weight": np.ones((1, 768), np.float32), "bias": np.ones(1, np.float32)}
    save_file(weights, folder / "head.safetensors")
    sizes = {"shard_rows": shard_rows, "rows_per_shard": shard_rows // 2}
    stages = {
        name: {
            key: places.get(key, value) if value == "none" else sizes.get(key, value)
            for key, value in keys.items()
        }
        for name, keys in recipe.stages.items()
    }
    for name in SOURCES:
        stages[name]["path"] = str(folder / name)
    stages["named"]["pictures"] = str(folder / "folder")
    stages["listed"]["path"] = str(folder / "listed.txt")
    stages["net"]["file"] = written(colours(16), folder / "net.onnx")
    stages["head"]["file"] = str(folder / "head.safetensors")
    stages["marked"]["file"] = written(marks(), folder / "marks.onnx")
    (folder / "blocked.txt").write_text("http://blocked.example/1.jpg\n")
    stages["clean"]["lists"] = {"links": str(folder / "blocked.txt")}
    if files > 1:
        stages["both"]["from"] = ["tars", "folder"]
    path = folder / "every_stage.yaml"
    path.write_text(yaml.safe_dump({"seed": recipe.seed, "stages": stages}, sort_keys=False))
    return path


def with_examples(recipe: Recipe, known: Iterable[str]) -> Recipe:
    """The recipe and, of each stage that has no line in it, the one that its example makes."""
    for uses in sorted({*known} - {keys["uses"] for keys in recipe.stages.values()}):
        for keys in lines_of(uses, recipe):
            stages = {**recipe.stages, uses.replace(".", "_"): keys}
            with contextlib.suppress(RecipeError):
                make_plan(replace(recipe, stages=stages))
                recipe = replace(recipe, stages=stages)
                break
    return recipe


def lines_of(uses: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The example of a stage, after each line whose rows or data it may take, the last first."""
    new = stage_class(uses, recipe.path)
    for above, keys in reversed(recipe.stages.items()):
        for edge, kind in (("from", "rows"), ("data", "data")):
            if kind in edges_taken(new) and kind in stage_class(keys["uses"], recipe.path).gives:
                yield {"uses": uses, edge: above, **example_of(new)}


def rows_of(generated: Path) -> list[dict[str, Any]]:
    """The generated pool's uids and captions, with an image and a link of ours."""
    rows = pq.read_table(generated / "metadata", columns=["uid", "text"]).to_pylist()
    return [
        {
            "number": number,
            "uid": row["uid"],
            "url": f"http://127.0.0.1:{{port}}/{number:03d}.bmp",
            "text": None if number == NO_CAPTION else row["text"],
            "image": (image := image_of(number)),
            "sha256": hashlib.sha256(image).hexdigest(),
        }
        for number, row in enumerate(rows)
    ]


def image_of(number: int) -> bytes:
    """The file of a row: mostly a picture."""
    if number == PAGE:
        return b"<!doctype html><title>Sign in</title>"
    return bitmap(number)[: 99 if number == CUT else None]


def bitmap(number: int) -> bytes:
    """A 24-bit BMP, by integers alone: bands and discs in a few colours."""
    height, width = 16 + number * 37 % 60, 16 + number * 53 % 90
    y_H1, x_1W = np.arange(height)[:, None], np.arange(width)[None]
    disc_HW = (y_H1 * 2 - height) ** 2 + (x_1W * 2 - width) ** 2 < (8 + number % 23) ** 2
    band_HW = (y_H1 * (1 + number % 3) + x_1W * (1 + number % 4)) // (5 + number % 11) % 4
    level_HW = np.where(disc_HW, 3, band_HW) * 71
    bgr_HW3 = (level_HW[..., None] + np.array([11, 29, 53]) * number) % 256
    padded = np.zeros((height, (width * 3 + 3) // 4 * 4), np.uint8)
    padded[:, : width * 3] = bgr_HW3.reshape(height, -1)
    size = 54 + padded.size
    header = struct.pack("<2sIII", b"BM", size, 0, 54)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6) + bytes(padded)


def write_site(rows: list[dict[str, Any]], folder: Path) -> None:
    """www/, with the faults."""
    www = folder / "www"
    www.mkdir(parents=True)
    for row in rows:
        (www / f"{row['number']:03d}.bmp").write_bytes(row["image"])
    acts = {f"{number:03d}.bmp": act for number, act in FAULTS.items()}
    (www / BEHAVIOUR).write_text(json.dumps(acts))


def write_sources(rows: list[dict[str, Any]], folder: Path, files: int) -> None:
    """The same rows six times: Parquet, CSV, Parquet with images, BMP with captions, tars, paths.

    Of several files the last has no rows.
    """
    for name in SOURCES:
        (folder / name).mkdir(parents=True)
    names = ("uid", "url", "text", "sha256")
    pool, whole = pa.table({name: [row[name] for row in rows] for name in names}), nested(rows)
    size = -(-len(rows) // files)
    for number in range(files if files == 1 else files + 1):
        start = number * size
        pq.write_table(pool.slice(start, size), folder / "pool" / f"{number}.parquet")
        pq.write_table(whole.slice(start, size), folder / "rows" / f"{number}.parquet")
        with (folder / "list" / f"{number}.csv").open("w", encoding="utf-8", newline="") as file:
            lines = pool.slice(start, size).to_pylist()
            csv.writer(file).writerows([names, *(line.values() for line in lines)])
        with (folder / "named" / f"{number}.tsv").open("w", encoding="utf-8", newline="") as file:
            named = [
                (f"{row['number']:03d}.bmp", row["text"]) for row in rows[start : start + size]
            ]
            csv.writer(file, delimiter="\t").writerows([("file", "text"), *named])
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for row in rows[start : start + size]:
                add_sample(tar, row)
    listed = [row["uid"] for row in rows for _ in range(row["number"] % 4)]
    (folder / "listed.txt").write_text("\n".join([*listed, "f" * 32]))
    concepts = [of_entries(words, language=name) for name, words in CONCEPTS.items()]
    save(concept_list(pa.concat_tables(concepts)), str(folder / "concepts.parquet"))
    for row in rows:
        path = folder / "folder" / f"{row['number']:03d}.bmp"
        path.write_bytes(row["image"])
        if row["text"] is not None:
            path.with_suffix(".txt").write_text(row["text"], encoding="utf-8")


def nested(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows as Hugging Face has them, with several captions and a vector each; NaN in some."""
    images = [
        {"bytes": None if row["number"] == NO_IMAGE else row["image"], "path": None} for row in rows
    ]
    vectors = [[row["number"], 0.5, 1 if row["number"] % 9 else np.nan] for row in rows]
    return pa.table(
        {
            "uid": [row["uid"] for row in rows],
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "captions": [["", row["text"], "a picture"] for row in rows],
            "sha256": [row["sha256"] for row in rows],
            "vector": pa.array(vectors, pa.list_(pa.float16())),
        }
    )


def add_sample(tar: tarfile.TarFile, row: dict[str, Any]) -> None:
    members = {
        "bmp": row["image"],
        "json": json.dumps({k: row[k] for k in ("uid", "url")}).encode(),
    }
    if row["number"] == NO_IMAGE:
        members.pop("bmp")
    if row["text"] is not None:
        members["txt"] = row["text"].encode()
    for suffix, data in members.items():
        header = tarfile.TarInfo(f"{row['number']:03d}.{suffix}")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))


def exported(out: Path) -> Iterator[dict[str, Any]]:
    """The rows of an export's files, in their order."""
    files = json.loads((out / "dataset.json").read_text())["files"]
    for path in sorted(out / file["file"] for file in files):
        if path.suffix == ".tar":
            yield from samples_of(path)
        elif path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            pixels = path.with_suffix(".pixels.npy")
            images = iter(np.load(pixels) if pixels.exists() else ())
            for row in rows:
                yield row | ({"pixels": next(images).tobytes()} if pixels.exists() else {})
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)
        elif path.suffix == ".jsonl":
            yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
        else:
            for high, low in np.load(path).tolist():
                yield {"uid": f"{high:016x}{low:016x}"}


def samples_of(path: Path) -> Iterator[dict[str, Any]]:
    """What a tar says of each sample, whatever the sample's key is."""
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            file = tar.extractfile(member)
            assert file  # a folder has none
            samples.setdefault(key, {})[suffix] = file.read()
    for key, members in samples.items():
        told = json.loads(members.pop("json"))
        assert told.pop("key") == key
        yield {**told, **members}


def plain(value: bytes) -> str:
    """Bytes for JSON: ids as hex, images as their digest."""
    return value.hex() if len(value) <= 16 else hashlib.sha256(value).hexdigest()
