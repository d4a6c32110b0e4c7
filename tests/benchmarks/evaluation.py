"""Evaluation beside CLIP_benchmark's own code: the same values, in less processor time.

    python -m tests.benchmarks.evaluation [full | NAME ...]    of SIZES; full: all but quick

Both read the same tars, load the same weights and compute in float32 on one thread. Texts are
what differs most: CLIP_benchmark pads each to the whole context, and embeds a class at a time.
Seconds are of processor, as others may share the cores.
"""

import contextlib
import io
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from clipmill.metadata.storage import Storage
from clipmill.stages.evaluate import _scoring
from clipmill.stages.evaluate._scoring import scored_task
from clipmill.stages.models.image_text import load
from clipmill.stages.ops.tasks.folders import describe
from tests.benchmarks.side_by_side import begin, side_by_side
from tests.stages.task_folders import write_tar

NETWORK = "ViT-S-32-alt"
SHARDS = 2  # CLIP_benchmark ends where there are fewer than loaders
SIZES = {  # classes, templates, pictures
    "quick": (12, 7, 64),
    "few texts": (10, 4, 160),
    "texts as pictures": (24, 7, 160),
    "ImageNet's share": (32, 8, 160),  # 1.6 texts a picture, as ImageNet with its 80 templates
}


def write_task(folder: Path, classes: int, templates: int, pictures: int) -> None:
    """A task of noise, of 256 by 320 pixels."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"thing number {c}\n" for c in range(classes)))
    prompts = "".join(f"{'a very ' * t}good photo of a {{c}}.\n" for t in range(templates))
    (folder / "zeroshot_classification_templates.txt").write_text(prompts)
    (folder / "test" / "nshards.txt").write_text(f"{SHARDS}\n")
    draw = np.random.default_rng(0)
    shards: list[dict[str, bytes]] = [{} for _ in range(SHARDS)]
    for number in range(pictures):
        small = draw.integers(0, 256, (16, 20, 3), np.uint8)
        image = cv2.resize(small, (320, 256), interpolation=cv2.INTER_CUBIC)
        members = shards[number * SHARDS // pictures]
        members[f"s{number:07d}.png"] = cv2.imencode(".png", image)[1].tobytes()
        members[f"s{number:07d}.cls"] = str(number % classes).encode()
    for number, members in enumerate(shards):
        write_tar(folder / "test" / f"{number}.tar", members)


def cpu_seconds() -> float:
    """Of this process and of those that it has ended: loaders cost as well as threads do."""
    return sum(os.times()[:4])


def hits(logits: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[float]:
    """Accuracy at each k. CLIP_benchmark's own function ends in an error from NumPy 2.4 on."""
    best = logits.topk(max(topk), dim=1).indices
    right = (best == target[:, None]).numpy()
    return [float(right[:, :k].any(axis=1).mean()) for k in topk]


def theirs(folder: Path, weights: Path) -> dict[str, float]:
    """CLIP_benchmark's metrics, as its command computes them without mixed precision."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification
    from clip_benchmark.models import load_clip

    model, transform, tokenizer = load_clip("open_clip", NETWORK, str(weights), None, device="cpu")
    data = build_dataset("wds/it", root=str(folder), transform=transform, split="test")
    loader = torch.utils.data.DataLoader(
        data.batched(64), batch_size=None, shuffle=False, num_workers=SHARDS
    )
    model.eval()
    zeroshot_classification.accuracy = hits
    with contextlib.redirect_stderr(io.StringIO()):  # its bars
        return zeroshot_classification.evaluate(
            model, loader, tokenizer, data.classes, data.templates, device="cpu", amp=False
        )


def ours(folder: Path, weights: Path) -> dict[str, float]:
    """The same by evaluate.zero_shot's own function."""
    _scoring.CLASSES.clear()
    model = load(f"open_clip:{NETWORK}@{weights}", "cpu", torch.get_num_threads())
    home = Storage(str(folder.parent))
    task, _ = describe(home, folder.name)
    found, _ = scored_task(home, task, model, "it")
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def main(*names: str) -> str:
    """Times both on each size; a value that differs ends it."""
    import open_clip

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place, "weights.pt")
        torch.manual_seed(0)
        torch.save(open_clip.create_model(NETWORK).state_dict(), weights)
        for number, name in enumerate(names):
            classes, templates, pictures = SIZES[name]
            folder = Path(place, "tasks", str(number))
            write_task(folder, classes, templates, pictures)
            expected, found = theirs(folder, weights), ours(folder, weights)
            assert found == {key: value for key, value in expected.items()}, (found, expected)
            print(f"{name}: {classes * templates} texts, {pictures} pictures, values equal")
            runs = {who.__name__: partial(who, folder, weights) for who in (theirs, ours)}
            ratios = side_by_side(rows=pictures, rounds=3, clock=cpu_seconds, **runs)
    return f"{ratios['ours']} CLIP_benchmark"


if __name__ == "__main__":
    begin(main, quick=("quick",), full=tuple(SIZES)[1:])
