"""The base of stages that embed images and captions; turns model outputs into columns."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import REASON, REASON_TYPE
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import Gigabytes, Gpus, NonEmpty, OneUp, Resources, RowStage, location
from clipmill.stages.models.image_text import look_for
from clipmill.stages.ops.vectors.matrices import from_matrix, unusable

# Shapes: N rows of the batch, D width of the vectors.

T = TypeVar("T")
NO_VECTOR = "zero_or_nan_embedding"
ADVICE = MappingProxyType({NO_VECTOR: "the model gives no vectors: try `clipmill doctor --model`"})


@dataclass(frozen=True, kw_only=True)
class Embedding(RowStage):
    """A stage that embeds by a model; the model decides the width of the vectors."""

    model: NonEmpty
    width: OneUp | None = None
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one
    cpus: OneUp = location(1)  # CPUs of a worker with a GPU: they decode while it computes
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    determinism = "exact"
    takes = ("rows", "model")
    advice = ADVICE
    batch_rows = 64

    @abstractmethod
    def known_width(self) -> int | None:
        """Returns the width by the model's name, or None; raises RecipeError for no such model."""

    def __post_init__(self) -> None:
        self.planned_width()  # an unknown scheme stops the plan, not the run

    def planned_width(self) -> int:
        """Returns the width for the plan; raises RecipeError if model and setting do not agree."""
        model, known, setting = self.model, self.known_width(), self.width
        if known is None and setting is None:
            do = "write width: <how many numbers its embeddings have>"
            raise RecipeError(f"only its weights say how wide {model!r} is", "key `model`", do)
        if None not in (known, setting) and known != setting:
            do = f"write width: {known}, or leave it out"
            raise RecipeError(f"{model!r} is {known} wide, not {setting}", "key `width`", do)
        return known or setting or 0

    def check_width(self, found: int, stage: str) -> None:
        """Checks that the weights have the planned width; raises StageError."""
        if found != (planned := self.planned_width()):
            words = f"a model that is {found} wide, where {planned} was planned"
            raise StageError(words, f"stage '{stage}', key `width`", f"write width: {found}")

    @property
    def resources(self) -> Resources:
        cpus = self.cpus if self.gpus else 1  # more threads of torch would change last bits
        return Resources(cpus=cpus, gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.model)


def vectors(
    inputs: Sequence[T | None], embed: Callable[[list[T]], NDArray[np.float32]], width: int
) -> pa.FixedSizeListArray:
    """Embeds the inputs that are not None; (N, D), null if a vector is zero or not finite."""
    missing_N = np.array([it is None for it in inputs], bool)
    row_ND = np.full((len(inputs), width), np.nan, np.float32)
    if not missing_N.all():
        row_ND[~missing_N] = embed([it for it in inputs if it is not None])
    return from_matrix(row_ND, unusable(row_ND))


def pair(
    vectors: dict[str, pa.Array],
    missing: Sequence[NDArray[np.bool_] | pa.ChunkedArray | pa.Array],
    reasons: tuple[str, ...],
) -> pa.Table:
    """Returns the columns with a reason if any is null: its input is missing, or its vector bad.

    `reasons` are one for each missing input, in order, then one for a bad vector.
    """
    nulls = [pa.array(np.asarray(missing_N)) for missing_N in missing]
    *of_inputs, of_models = reasons
    nulls += [column.is_null() for column in vectors.values()]
    texts = [*of_inputs, *[of_models] * len(vectors)]
    reason = pc.case_when(pc.make_struct(*nulls), *texts).cast(REASON_TYPE)
    return pa.table({**vectors, REASON.name: reason})
