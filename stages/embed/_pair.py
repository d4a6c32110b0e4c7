"""Vectors of a row's image and caption, each null where its input is, or has no direction."""

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
    """A stage whose vectors are as wide as the model that makes them."""

    model: NonEmpty
    width: OneUp | None = None
    gpus: Gpus = location(0)  # GPUs of one worker; 0.5 shares one between two
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    determinism = "exact"
    takes = ("rows", "model")
    advice = ADVICE
    batch_rows = 64

    @abstractmethod
    def known_width(self) -> int | None:
        """That of the model's vectors, where its name says it; RecipeError for no such model."""

    def __post_init__(self) -> None:
        self.planned_width()  # an unknown scheme stops the plan, not the run

    def planned_width(self) -> int:
        """That which a plan goes by; RecipeError where nothing says it, or two say different."""
        model, known, given = self.model, self.known_width(), self.width
        if known is None and given is None:
            do = "write width: <how many numbers its embeddings have>"
            raise RecipeError(f"only its weights say how wide {model!r} is", "key `model`", do)
        if None not in (known, given) and known != given:
            do = f"write width: {known}, or leave it out"
            raise RecipeError(f"{model!r} is {known} wide, not {given}", "key `width`", do)
        return known or given or 0

    def check_width(self, found: int, stage: str) -> None:
        """StageError where the weights are of another width."""
        if found != (planned := self.planned_width()):
            raise StageError(
                found=f"a model that is {found} wide, where {planned} was planned",
                where=f"stage '{stage}', key `width`",
                do=f"write width: {found}",
            )

    @property
    def resources(self) -> Resources:  # `reference` needs little
        return Resources(gpus=self.gpus, memory_gb=self.memory_gb)

    def look(self) -> None:
        look_for(self.model)


def vectors(
    inputs: Sequence[T | None], embed: Callable[[list[T]], NDArray[np.float32]], width: int
) -> pa.FixedSizeListArray:
    """(N, D) what `embed` makes of the inputs that are there; null where it has no direction."""
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
    """The columns, and a reason where one is null: its input is `missing`, or its model has none.

    `reasons` are of each input, in their order, and of what a model does not embed.
    """
    nulls = [pa.array(np.asarray(missing_N)) for missing_N in missing]
    *of_inputs, of_models = reasons
    nulls += [column.is_null() for column in vectors.values()]
    texts = [*of_inputs, *[of_models] * len(vectors)]
    reason = pc.case_when(pc.make_struct(*nulls), *texts).cast(REASON_TYPE)
    return pa.table({**vectors, REASON.name: reason})
