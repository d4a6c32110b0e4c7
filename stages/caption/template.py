"""Puts class names or attributes into templates: captions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import CAPTIONS, CAPTIONS_MISSING, UID, Column
from clipmill.metadata.uid import coin_hash, mixed
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.stage import NonEmpty, OneUp, RowFunction, RowStage, Worker
from clipmill.stages.caption._table import caption_table

# Shapes: N rows, T texts before the draw.

TEMPLATED = "template"  # the label of a text


@dataclass(frozen=True, kw_only=True)
class Template(RowStage):
    """Texts such as `a photo of dog` made of the values in a column; null if it has none.

    Each value, and each of a list, is put for `{}` into `each` templates, drawn by hash without
    replacement, in the templates' order. `_` in a value becomes a space. Texts have the label
    `template`, and their template as prompt. captions_missing counts values that are null or blank.

    Source: UniMed-CLIP (Khattak et al. 2024), which turns labels into captions by 10 to 15
    templates of a field; CLIP (Radford et al. 2021) for `a photo of`. Departs: the templates here
    are of our own words, without an article, and name no field.
    Error: none; a template's grammar does not follow the value (`a photo of dogs`).
    Example: {after: [ingest.datacomp], column: text}
    """

    column: NonEmpty  # class names or attributes: strings, or lists of them
    # sentences with `{}` for the value
    templates: Annotated[tuple[NonEmpty, ...], Meta(min_length=1)] = (
        *("a photo of {}", "a picture of {}", "an image of {}", "a view of {}"),
        *("a photo that shows {}", "a picture that shows {}", "an image that shows {}"),
        *("this is {}", "the photo shows {}", "the picture shows {}", "the image shows {}", "{}"),
    )
    each: OneUp = 1  # templates of a value, drawn by hash

    version = 1
    determinism = "exact"
    writes = (CAPTIONS, CAPTIONS_MISSING)
    reasons = ("no_values", "blank_values")

    def __post_init__(self) -> None:
        for template in self.templates:
            if "{}" not in template:
                found = f"the template '{template}' has no {{}}"
                raise RecipeError(found, "key `templates`", "write {} where the value belongs")
        if self.each > (most := len({*self.templates})):
            found = f"`each` is {self.each}, and there are {most} different templates"
            raise RecipeError(found, "key `each`", f"write {most} at most, or more templates")

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return (self.column,)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types[self.column]
        if not pa.types.is_string(kind.value_type if pa.types.is_list(kind) else kind):
            do = "name a column of strings, or of lists of strings"
            raise RecipeError(f"'{self.column}' is of type {kind}", "key `column`", do)

    def open(self, worker: Worker) -> RowFunction:
        return partial(templated, self, worker.seed, worker.stage)


def templated(stage: Template, seed: int, name: str, batch: pa.Table) -> pa.Table:
    """Returns the texts of every row, the number of values without one, and reasons."""
    values = pl.DataFrame({"value": batch[stage.column]}).with_row_index("row").drop_nulls()
    if isinstance(values["value"].dtype, pl.List):
        values = values.explode("value", empty_as_null=False)
    spaced = pl.col("value").str.replace_all("_", " ", literal=True).str.strip_chars()
    values = values.with_columns(value=spaced)
    has_value = pl.col("value").fill_null("") != ""
    bits_N = coin_hash(batch[UID.name], seed=seed, stage=name, purpose="template")
    texts = drawn(values.filter(has_value), stage, bits_N)
    return caption_table(
        len(batch),
        (values, values.remove(has_value), texts),
        column=CAPTIONS.name,
        stage=name,
        reasons=Template.reasons,
    )


def drawn(values: pl.DataFrame, stage: Template, bits_N: NDArray[np.uint64]) -> pl.DataFrame:
    """Returns `each` texts of every value, by the templates with the least hashes, in order."""
    templates = pl.DataFrame({"prompt_id": [*dict.fromkeys(stage.templates)]})
    templates = templates.with_row_index("number")
    values = values.with_columns(place=pl.int_range(pl.len(), dtype=pl.UInt64).over("row"))
    texts = values.join(templates, how="cross", maintain_order="left_right")
    number_T = texts.select(pl.col("place") * len(templates) + pl.col("number")).to_series()
    coin_T = mixed(bits_N[texts["row"].to_numpy()] + number_T.to_numpy())
    rank = pl.col("coin").rank("ordinal").over("row", "place")
    return (
        texts.with_columns(coin=coin_T)
        .filter(rank <= stage.each)
        .with_columns(
            text=pl.col("prompt_id").str.replace_all("{}", pl.col("value"), literal=True),
            model=pl.lit(None, pl.String),
            label=pl.lit(TEMPLATED),
        )
    )
