"""The pairs of a stage's rows, as a PyTorch or a Hugging Face dataset."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import polars as pl
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from clipmill.metadata.schema import IMAGE, IMAGE_BYTES, POSITION, SHARD, TEXT
from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.extras import pip_install
from clipmill.pipeline.ledger.rows.pictures import pictures_at
from clipmill.pipeline.ledger.rows.table import table
from clipmill.pipeline.run_folder.state import RunState, latest

if TYPE_CHECKING:
    import datasets

READ = 256  # rows read at once for a Hugging Face dataset


class Pairs(Dataset[tuple[Any, Any]]):
    """Picture and caption of each row of a stage that has a picture: a PIL image, and text.

    A list of captions gives their texts. Captions are in memory, pictures are read from the run
    folder, a batch at once. Workers of a DataLoader open the folder by themselves.
    """

    def __init__(
        self,
        uri: str,
        variant: int | None,
        stage: str,
        caption: str = TEXT.name,
        transform: Callable[[Any], Any] | None = None,
        state: RunState | None = None,
    ) -> None:
        self._opened = (uri, variant)
        self._state = state or latest(uri, variant)
        self.root = self._state.plan.stages[stage].root or stage
        self.transform = transform
        columns = [caption, SHARD.name, POSITION.name]
        where = f"{IMAGE_BYTES.name} IS NOT NULL"
        rows = table(self._state, stage, columns, where, stacklevel=4).collect()
        self.uids: list[str] = rows["uid"].to_list()
        captions = rows[caption]
        if isinstance(captions.dtype, pl.List) and isinstance(captions.dtype.inner, pl.Struct):
            captions = captions.list.eval(pl.element().struct.field(TEXT.name))
        self.captions: list[Any] = captions.to_list()
        self.are_lists = captions.dtype == pl.List
        self._places = list(zip(rows[SHARD.name], rows[POSITION.name], strict=True))

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<{len(self):,} pairs of {self._opened[0]}>"

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Returns a batch; a DataLoader asks for all its rows at once."""
        pictures = map(upright, self.bytes_of(indices))
        seen = map(self.transform, pictures) if self.transform else pictures
        return list(zip(seen, (self.captions[index] for index in indices), strict=True))

    def bytes_of(self, indices: Sequence[int]) -> list[bytes]:
        """Returns pictures as they are stored."""
        places = [self._places[index] for index in indices]
        rows = pictures_at(self._state, self.root, places, [IMAGE.name])
        return [row[IMAGE.name] for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_state"}

    def __setstate__(self, stored: dict[str, Any]) -> None:
        vars(self).update(stored)
        self._state = latest(*self._opened)


def upright(body: bytes) -> Image.Image:
    """Returns a stored picture in RGB, turned as its EXIF says."""
    return ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB")


def hugging_face(pairs: Pairs) -> "datasets.Dataset":
    """Returns `image`, `text` and `uid` of the pairs; they are copied into its cache."""
    try:
        import datasets
    except ImportError:
        do = pip_install("datasets")
        raise RecipeError("the package 'datasets' is not installed", "run.to_hf", do) from None

    def rows() -> Iterator[dict[str, Any]]:
        for start in range(0, len(pairs), READ):
            indices = range(start, min(start + READ, len(pairs)))
            for index, body in zip(indices, pairs.bytes_of(indices), strict=True):
                picture = {"bytes": body, "path": None}
                yield {"image": picture, "text": pairs.captions[index], "uid": pairs.uids[index]}

    texts = datasets.Value("string")
    if pairs.are_lists:
        texts = datasets.List(datasets.Value("string"))
    features = {"image": datasets.Image(), "text": texts, "uid": datasets.Value("string")}
    # A run folder changes: what an earlier call cached under the same name would be another's.
    fingerprint = uuid.uuid4().hex
    return datasets.Dataset.from_generator(
        rows, features=datasets.Features(features), fingerprint=fingerprint
    )
