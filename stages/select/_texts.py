"""The texts of rows one after the other, with the values that stand beside them."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from metadata.schema import TEXT, TEXT_CLIP_SCORE, TEXT_LIST, TEXTS
from pipeline.errors import StageError

# Shapes: N rows, T texts of all of them.

ORIGINAL = "original"
OF_TEXT = ("text", "source", "model", "prompt_id", "label")  # what is known of each text


class Texts:
    """The texts of a shard one after the other, and values beside them."""

    def __init__(self, shard: pa.Table, captions: tuple[str, ...]) -> None:
        lists = gathered(shard, captions) if captions else shard[TEXTS.name].combine_chunks()
        self.shard = shard
        self.count_N = pc.list_value_length(lists).fill_null(0).to_numpy()
        self.row_T = np.repeat(np.arange(len(shard)), self.count_N)
        self.values = pc.list_flatten(lists)
        self.part = {name: pc.struct_field(self.values, name) for name in OF_TEXT}
        is_own = pc.equal(self.part["source"], ORIGINAL).fill_null(False).to_numpy(False)
        self.original_T = is_own & self.part["text"].is_valid().to_numpy(False)

    def beside(self, name: str) -> pa.Array:
        """(T,) values of a list as long as the texts; null where a row has no such list."""
        lists = self.shard[name].combine_chunks()
        count_N = pc.list_value_length(lists).fill_null(0).to_numpy()
        has_N = lists.is_valid().to_numpy(zero_copy_only=False)
        if (count_N != self.count_N)[has_N].any():
            raise StageError(
                found=f"'{name}' has {count_N.sum()} values beside {self.count_N.sum()} texts",
                where=f"columns `{TEXTS.name}` and `{name}`",
                do="read the texts that it was made of: read: {texts: NAME.texts}",
            )
        start_N = np.cumsum(count_N) - count_N
        place_T = np.arange(len(self.row_T)) - np.repeat(
            np.cumsum(self.count_N) - self.count_N, self.count_N
        )
        at_T = pa.array(start_N[self.row_T] + place_T, mask=~has_N[self.row_T])
        return pc.list_flatten(lists).take(at_T)

    @property
    def scores(self) -> pa.Array:
        if TEXT_CLIP_SCORE.name not in self.shard.column_names:
            return pa.nulls(len(self.row_T), pa.float32())
        return self.beside(TEXT_CLIP_SCORE.name)


def gathered(shard: pa.Table, captions: tuple[str, ...]) -> pa.Array:
    """The caption of each row, then the texts of these lists, in their order."""
    row = pl.int_range(len(shard), dtype=pl.Int64).alias("row")
    none, own = pl.lit(None, pl.String), pl.lit(ORIGINAL)
    known = {"source": own, "model": none, "prompt_id": none, "label": own}
    each = [pl.DataFrame({"text": shard[TEXT.name]}).select(row, "text", **known)]
    for name in captions:
        made = pl.DataFrame({"made": shard[name]}).select(row, "made").explode("made")
        each.append(made.unnest("made").select("row", *OF_TEXT))
    texts = pl.concat(each).sort("row", maintain_order=True).filter(pl.col("text").is_not_null())
    fields = list(TEXT_LIST.value_type)
    parts = [texts[field.name].to_arrow().cast(field.type) for field in fields]
    values = pa.StructArray.from_arrays(parts, fields=fields)
    return listed(values, np.bincount(texts["row"].to_numpy(), minlength=len(shard)))


def listed(values: pa.Array, count_N: NDArray[np.int64]) -> pa.Array:
    """So many of the values a row; null where there is none."""
    ends = pa.array(np.append(0, np.cumsum(count_N)), pa.int32())
    return pa.ListArray.from_arrays(ends, values, mask=pa.array(count_N == 0))
