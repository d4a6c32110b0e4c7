"""The texts of rows one after the other, with the values that stand beside them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.metadata.schema import ORIGINAL, TEXT_CLIP_SCORE, TEXT_FIELDS, TEXTS
from clipmill.pipeline.errors import StageError
from clipmill.stages.ops.text_lists import flat_texts, text_list

# Shapes: N rows, T texts of all of them.


class Texts:
    """The texts of a shard one after the other, and values beside them."""

    def __init__(self, shard: pa.Table, captions: tuple[str, ...]) -> None:
        if captions:
            texts = flat_texts(shard, captions, has_own=True)
            count_N = np.bincount(texts["row"].to_numpy(), minlength=len(shard))
            lists = text_list(texts, count_N)
        else:
            lists = shard[TEXTS.name].combine_chunks()
        self.shard = shard
        self.count_N = pc.list_value_length(lists).fill_null(0).to_numpy()
        self.row_T = np.repeat(np.arange(len(shard)), self.count_N)
        self.values = pc.list_flatten(lists)
        self.part = {name: pc.struct_field(self.values, name) for name in TEXT_FIELDS}
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
