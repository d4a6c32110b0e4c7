"""Writes a bench as an ordinary recipe, DIR/bench.yaml.

Pictures are decoded once; each arm has a training and an evaluation.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipmill.metadata.storage import Storage
from clipmill.pipeline.bench.spec import PROBE, PROBES, RAW, SCORES, Arm, Bench
from clipmill.pipeline.planning.recipe import Recipe

FILE = "bench.yaml"
LEAKS, CHECK = "leaks", "evaluate.leaks"
SOURCE = "pixels"
PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
WORDS = ("true", "false", "null", "yes", "no", "on", "off")  # other types to some YAML readers


@dataclass(frozen=True)
class Data:
    """The rows that an arm is trained on: an export, and the file that selects from it."""

    export: str  # URI of the stage's folder
    subset: str | None  # None: all rows


def arms_of(bench: Bench, random: list[str]) -> dict[str, Arm]:
    """Returns every arm in order: raw, the arms of the bench, random ones."""
    return {RAW: Arm(rows=RAW), **bench.arms, **{name: Arm(rows=name) for name in random}}


def stages_of(
    bench: Bench, arms: Mapping[str, Arm], data: Mapping[str, Data], sizes: Mapping[str, int | None]
) -> dict[str, Any]:
    """Returns the recipe's stages; `data` is by the rows' name.

    `sizes` gives by arm the side in pixels of its pictures, which are decoded once for all arms;
    None if its training decodes pictures itself and reads the export directly.
    """
    stages: dict[str, Any] = {}
    for export in dict.fromkeys(rows.export for rows in data.values()):
        name = f"{LEAKS}_{len(stages)}" if stages else LEAKS
        stages[name] = {"uses": CHECK, "data": f"export:{export}", "tasks": bench.tasks}
    pixels: dict[tuple[str, int | None], str] = {}  # the stage that arms read, by export and size
    for name, arm in arms.items():
        export, size = data[arm.rows].export, sizes[name]
        if size is None:
            pixels[export, size] = f"export:{export}"
        elif (export, size) not in pixels:
            count = sum(not read.startswith("export:") for read in pixels.values())
            pixels[export, size] = f"{SOURCE}_{count}" if count else SOURCE
            stages[pixels[export, size]] = {
                "uses": "export.pixels",
                "data": f"export:{export}",
                "image_size": size,
            }
    for name, arm in arms.items():
        rows = data[arm.rows]
        stages[name] = {
            "uses": "train.clip",
            "data": pixels[rows.export, sizes[name]],
            **({"subset": rows.subset} if rows.subset else {}),
            "scale": bench.scale,
            **bench.settings,
            **arm.settings,
            "seeds": list(range(bench.seeds)),
        }
        stages[f"{name}{SCORES}"] = {
            "uses": "evaluate.zero_shot",
            "model": f"stage:{name}",
            "tasks": bench.tasks,
            **({"embeddings": True} if PROBE in bench.judges else {}),
        }
        if PROBE in bench.judges:
            probes = {"data": f"{name}{SCORES}", "probes": ["ridge"]}
            stages[f"{name}{PROBES}"] = {"uses": "evaluate.probe", **probes}
    return stages


def leaks_of(stages: Mapping[str, Any], data: str) -> str:
    """Returns the stage that compares an arm's export with the tasks."""
    export = data if data.startswith("export:") else stages[data]["data"]
    return next(n for n, keys in stages.items() if keys["uses"] == CHECK and keys["data"] == export)


def recipe_of(stages: dict[str, Any], path: str) -> Recipe:
    """Returns the stages as a recipe at a path, which need not exist yet."""
    return Recipe(name="bench", path=path, seed=0, stages=stages)


def as_yaml(stages: Mapping[str, Any], out: Storage) -> str:
    """Returns the recipe's text, a stage per line."""
    width = max(map(len, stages)) + 1
    lines = [
        "# A bench: one training and one evaluation of each arm, at equal samples seen.",
        f"# Run:      clipmill bench --out {out}",
        "# `--add NAME=RUN:STAGE` adds an arm and `--seeds` seeds: both write this file anew.",
        "seed: 0",
        "stages:",
    ]
    lines += [f"  {f'{name}:':<{width}} {_inline(keys)}" for name, keys in stages.items()]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    """Returns the value in YAML, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_inline(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
