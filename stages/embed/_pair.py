"""Vectors of a row's image and caption, each null where its input is, or has no direction."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.metadata.schema import REASON, REASON_TYPE
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.stages.ops.vectors.matrices import from_matrix, unusable

# Shapes: N rows of the batch, D width of the vectors.

T = TypeVar("T")
NO_VECTOR = "zero_or_nan_embedding"
ADVICE = MappingProxyType({NO_VECTOR: "the model gives no vectors: try `clipmill doctor --model`"})


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


def planned_width(model: str, known: int | None, given: int | None) -> int:
    """The width that a plan goes by; RecipeError where nothing says it, or two say different."""
    if known is None and given is None:
        do = "write width: <how many numbers its embeddings have>"
        raise RecipeError(f"only its weights say how wide {model!r} is", "key `model`", do)
    if None not in (known, given) and known != given:
        do = f"write width: {known}, or leave it out"
        raise RecipeError(f"{model!r} is {known} wide, not {given}", "key `width`", do)
    return known or given or 0


def check_width(found: int, planned: int, stage: str) -> None:
    """StageError where the weights are of another width."""
    if found != planned:
        raise StageError(
            found=f"a model that is {found} wide, where {planned} was planned",
            where=f"stage '{stage}', key `width`",
            do=f"write width: {found}",
        )
