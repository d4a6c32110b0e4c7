"""Scores pictures by LAION's watermark detector, whose weights the user has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.extras import missing
from clipmill.pipeline.stage import Gpus, NonEmpty, RowFunction, RowStage, Worker, location
from clipmill.stages.models.network_file import (
    PICTURES,
    PICTURES_ON_GPU,
    look_at,
    named_weights,
    open_network,
    square_of,
)
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of

# Shapes: N pictures, B pictures of a call, S side.

PWATERMARK = Column("pwatermark", pa.float32(), "0 to 1", "Chance of a watermark.", better="low")
SIDE = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
HEAD = (1536, 625, 256, 2)  # widths; ReLU between them, dropout after the first
Logits = Callable[[NDArray[np.float32]], NDArray[np.floating]]  # (N, 3, S, S) to (N, 2)


@dataclass(frozen=True, kw_only=True)
class Watermark(RowStage):
    """Chance that the picture has a watermark, 0 to 1; null if undecodable.

    Source: LAION-5B-WatermarkDetection: timm's efficientnet_b3a and a head of three layers, on the
    whole picture squashed to 256 pixels. LAION cuts at 0.8; its authors name no test set.
    Error: float32's; pictures past a megapixel are shrunk to it first (PIXELS).
    Example: {after: [ingest.image_folder], file: watermark_model_v1.pt}
    """

    file: NonEmpty  # the weights as published: .pt or .safetensors, which takes timm; or .onnx
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one

    version = 1
    determinism = "exact"
    batch_rows = 64
    reads = (PIXELS,)
    writes = (PWATERMARK,)
    reasons = ("no_image", "not_finite")

    def look(self) -> None:
        look_at(self.file)

    def open(self, worker: Worker) -> RowFunction:
        logits = (
            by_onnx(self.file, worker)
            if self.file.endswith(".onnx")
            else by_timm(self.file, worker)
        )
        return lambda batch: scored(batch, logits)


def scored(batch: pa.Table, logits: Logits) -> pa.Table:
    """Returns the chance of every row, or a reason."""
    given = batch[PIXELS.name]
    known_N = given.is_valid().to_numpy()
    logit_N2 = np.full((len(batch), 2), np.nan)
    if known_N.any():
        logit_N2[known_N] = logits(tensors([rgb for rgb in rows_of(given) if rgb is not None]))
    chance_N = 1 / (1 + np.exp(logit_N2[:, 1] - logit_N2[:, 0]))  # softmax of two
    chance = pa.array(chance_N.astype(np.float32), mask=np.isnan(chance_N))
    null = pc.make_struct(given.is_null(), chance.is_null())
    reason = pc.case_when(null, *Watermark.reasons).cast(REASON_TYPE)
    return pa.table({PWATERMARK.name: chance, REASON.name: reason})


def tensors(rgb: list[RGB]) -> NDArray[np.float32]:
    """Returns (N, 3, S, S) pictures as the network reads them."""
    row_NSS3 = np.array([square_of(picture, SIDE) for picture in rgb], np.float32)
    row_NSS3 /= 255
    row_NSS3 -= np.array(MEAN, np.float32)
    row_NSS3 /= np.array(STD, np.float32)
    return row_NSS3.transpose(0, 3, 1, 2)


def by_onnx(file: str, worker: Worker) -> Logits:
    """Opens the detector of an ONNX file; raises StageError where it is another network."""
    network = open_network(file, worker)
    shapes = network.input.shape[1:], network.outputs[0].shape[1:]
    if shapes != ((3, SIDE, SIDE), (2,)):
        found = f"a network of {shapes[0]} to {shapes[1]}, not (3, {SIDE}, {SIDE}) to (2,)"
        raise StageError(found, redacted(file), "export the watermark detector, before its softmax")
    return lambda row_N3SS: network(row_N3SS, [network.outputs[0].name])[0]


def by_timm(file: str, worker: Worker) -> Logits:
    """Builds the detector of published weights; raises StageError where they are another's."""
    weights, sha256 = named_weights(file)
    worker.pin(redacted(file), sha256)
    try:
        import timm
    except ModuleNotFoundError:
        raise missing("timm", redacted(file)) from None
    import torch
    from torch import nn

    torch.set_num_threads(worker.threads)
    model: Any = timm.create_model("efficientnet_b3", num_classes=2)  # efficientnet_b3a of today
    first, second, third = (nn.Linear(HEAD[n], HEAD[n + 1]) for n in range(3))
    model.classifier = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.3), second, nn.ReLU(), third)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    except RuntimeError as error:
        first_line = str(error).splitlines()[-1].strip()
        do = "give watermark_model_v1.pt as LAION published it"
        raise StageError(f"weights of another network: {first_line}", redacted(file), do) from None
    model = model.eval().to(worker.device)
    rows = PICTURES_ON_GPU if worker.device.startswith("cuda") else PICTURES

    def logits(row_N3SS: NDArray[np.float32]) -> NDArray[np.floating]:
        parts = []
        for start in range(0, len(row_N3SS), rows):
            some = row_N3SS[start : start + rows]
            padded_B3SS = np.zeros((rows, *some.shape[1:]), np.float32)
            padded_B3SS[: len(some)] = some
            with torch.inference_mode():
                answer = model(torch.from_numpy(padded_B3SS).to(worker.device))
            parts.append(answer[: len(some)].float().cpu().numpy())
        return np.concatenate(parts)

    return logits
