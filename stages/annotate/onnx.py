"""Runs a network of an ONNX file over pictures, or over a stored embedding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from numpy.typing import NDArray

from clipmill.metadata.schema import REASON, REASON_TYPE, Column
from clipmill.pipeline.errors import RecipeError, StageError
from clipmill.pipeline.stage import (
    Environment,
    Finding,
    Gpus,
    NonEmpty,
    OneUp,
    RowFunction,
    RowStage,
    Share,
    Worker,
    location,
)
from clipmill.stages.models.network_file import Network, look_at, open_network, square_of
from clipmill.stages.ops.images.pixels import PIXELS, RGB, rows_of
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix

# Shapes: N rows of a batch, D numbers of an output, S side of a square picture.

NOT_FINITE = "not_finite"
SIDE, MEASURED_S = 224, 0.2  # of `doctor --onnx`: where the file leaves the side open; of its runs
ADVICE = MappingProxyType({NOT_FINITE: "it gives no numbers: try `clipmill doctor --onnx FILE`"})
Layout = Literal["NCHW", "NHWC"]


def proof(
    uri: str, worker: Worker, missing: Callable[[Sequence[Environment]], list[str]]
) -> list[Finding]:
    """Runs a network on noise; returns its inputs, outputs and speed, and a recipe's lines."""
    import yaml

    network = open_network(uri, replace(worker, device="cpu"))
    shape = network.input.shape[1:]
    layout: Layout = "NHWC" if shape[-1:] == (3,) else "NCHW"
    colours = 2 if layout == "NHWC" else 0
    unknown = (
        [3 if n == colours else SIDE for n in range(3)]
        if network.reads_pictures
        else [0] * len(shape)
    )
    sizes = [size or other for size, other in zip(shape, unknown, strict=True)]
    if 0 in sizes:
        found = f"reads {network.input.dtype} of any width, which only its maker knows"
        return [Finding(uri, "note", found, "try it: `input: COLUMN, outputs: {NAME: COLUMN}`")]
    noise = np.random.default_rng(0).random((network.rows, *sizes), np.float32)
    names = [port.name for port in network.outputs]
    widths = [value[0].size for value in network(noise, names)]
    begin, rows = perf_counter(), 0
    while perf_counter() - begin < MEASURED_S:
        network(noise, names)
        rows += network.rows
    speed = rows / (perf_counter() - begin)
    keys: dict[str, Any] = {"uses": "annotate.onnx", "from": "STAGE", "file": uri}
    keys |= {"side": sizes[1]} if network.reads_pictures else {"input": "COLUMN"}
    keys |= {"layout": layout} if layout == "NHWC" and network.reads_pictures else {}
    columns = {n: n if width == 1 else {n: width} for n, width in zip(names, widths, strict=True)}
    lines = yaml.safe_dump(
        keys | {"outputs": columns}, default_flow_style=True, sort_keys=False, width=10_000
    )
    outputs = ", ".join(f"{n!r}: {width}" for n, width in zip(names, widths, strict=True))
    reads = f"{network.input.name!r}: {' x '.join(map(str, sizes))}"
    found = f"reads {reads}, writes {outputs}; {speed:,.0f} rows/s on one thread"
    return [Finding(uri, "good", found, f"look: {lines.strip()}")]


@dataclass(frozen=True, kw_only=True)
class Onnx(RowStage):
    """Outputs of a network, a column each; null without an input, or where a value is not finite.

    Pictures are squares of 8-bit RGB by Pillow's bilinear filter, (value / 255 - mean) / std; as
    they are where the network reads uint8.

    Source: ONNX, an open format; onnxruntime computes.
    Error: float32's on one processor. `crop` is what torchvision's Resize and CenterCrop give, but
    for their rounding of the longer side.
    Example: {after: [ingest.image_folder], file: net.onnx, side: 224,
        outputs: {vector: {image_embedding: 768}}}
    """

    file: NonEmpty  # the network, in one file; `clipmill doctor --onnx FILE` reads it
    # of each output: a column of one number, a list of such columns, or {column: width} of a vector
    outputs: dict[NonEmpty, NonEmpty | tuple[NonEmpty, ...] | dict[NonEmpty, OneUp]]
    input: NonEmpty = "pixels"  # or a column of vectors, such as image_embedding
    side: OneUp | None = None  # of the square that it reads, in pixels
    fit: Literal["squash", "crop"] = "squash"  # the whole picture into the square, or its centre
    # of red, green, blue, from 0 to 1; subtracted
    mean: tuple[Annotated[float, Meta(ge=0, le=1)], ...] = (0.0, 0.0, 0.0)
    std: tuple[Share, ...] = (1.0, 1.0, 1.0)  # of red, green, blue; it divides
    layout: Layout = "NCHW"  # colours before rows and columns, or NHWC: after them
    gpus: Gpus = location(0)  # GPUs of one worker; at 0.5 two workers share one

    version = 1
    determinism = "exact"
    batch_rows = 64
    proofs = (("onnx", proof),)
    advice = ADVICE

    def __post_init__(self) -> None:
        if self.of_pictures and self.side is None:
            do = "write side: <pixels>, as in side: 224"
            raise RecipeError("no size of the pictures that it reads", "key `side`", do)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                do = f"write {key}: [red, green, blue], from 0 to 1"
                raise RecipeError(f"{list(values)}, not a number a colour", f"key `{key}`", do)
        names = [column.name for column in self.writes]
        if not names or len({*names}) < len(names):
            do = "write outputs: {NAME: COLUMN}, each column once"
            raise RecipeError(f"columns: {', '.join(names) or 'none'}", "key `outputs`", do)

    @property
    def of_pictures(self) -> bool:
        return self.input == PIXELS.name

    @property
    def columns(self) -> dict[str, dict[str, int | None]]:
        """Returns by output the columns it fills, and their width; None for a number."""
        return {
            output: {**names}
            if isinstance(names, dict)
            else dict.fromkeys([names] if isinstance(names, str) else names)
            for output, names in self.outputs.items()
        }

    @property
    def reads(self) -> tuple[Column | str, ...]:
        return (PIXELS if self.of_pictures else self.input,)

    @property
    def writes(self) -> tuple[Column, ...]:
        file = self.file.rpartition("/")[2]
        return tuple(
            Column(
                name,
                pa.list_(pa.float32(), width) if width else pa.float32(),
                "any",
                f"Output {output} of {file}.",
            )
            for output, names in self.columns.items()
            for name, width in names.items()
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        return ("no_image" if self.of_pictures else "no_embedding", NOT_FINITE)

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        found = types.get(self.input)
        if not self.of_pictures and not Column("", pa.list_(pa.float32()), "", "").accepts(found):
            do = "name a column of vectors, as embed.clip writes, or write input: pixels"
            raise RecipeError(f"column '{self.input}' is {found}", "key `input`", do)

    def look(self) -> None:
        look_at(self.file)

    def open(self, worker: Worker) -> RowFunction:
        network = open_network(self.file, worker)
        there = [port.name for port in network.outputs]
        for lost in sorted(self.outputs.keys() - {*there}):
            do = f"it has {', '.join(there)}: mend `outputs`"
            raise StageError(f"a network without an output {lost!r}", network.uri, do)
        shape, side = network.input.shape[1:], self.side or 1
        if self.of_pictures or None not in shape:  # a file of other shapes stops before any row
            zero_1 = np.zeros((1, *[size or 1 for size in shape]), np.float32)
            if self.of_pictures:
                zero_1 = self.tensors([np.zeros((side, side, 3), np.uint8)], is_raw=True)
            values = network(zero_1, [*self.outputs])
            for names, value_1 in zip(self.columns.values(), values, strict=True):
                flat(value_1, sum(width or 1 for width in names.values()), network.uri)
        return lambda batch: self.annotate(batch, network)

    def annotate(self, batch: pa.Table, network: Network) -> pa.Table:
        """Returns the outputs for every row, or a reason."""
        given = batch[self.input]
        known_N = given.is_valid().to_numpy()
        if self.of_pictures:
            rgb = [row for row in rows_of(given) if row is not None]
            inputs = self.tensors(rgb, is_raw=network.input.dtype == "tensor(uint8)")
        else:
            inputs = as_matrix(given.drop_null())
        columns: dict[str, pa.Array] = {}
        values = network(inputs, [*self.outputs])
        for names, value_N in zip(self.columns.values(), values, strict=True):
            ends = np.cumsum([width or 1 for width in names.values()])
            row_ND = np.full((len(batch), ends[-1]), np.nan, np.float32)
            with np.errstate(over="ignore"):  # a float64 past float32's range is infinite
                row_ND[known_N] = flat(value_N, ends[-1], network.uri)
            row_ND[~np.isfinite(row_ND)] = np.nan
            parts = np.split(row_ND, ends[:-1], axis=1)
            for (name, width), part_ND in zip(names.items(), parts, strict=True):
                number_N = pa.array(part_ND[:, 0], from_pandas=True)  # NaN is null
                columns[name] = from_matrix(part_ND) if width else number_N
        null = [pa.array(~known_N), *(column.is_null() for column in columns.values())]
        texts = [self.reasons[0], *[NOT_FINITE] * len(columns)]
        reason = pc.case_when(pc.make_struct(*null), *texts).cast(REASON_TYPE)
        return pa.table({**columns, REASON.name: reason})

    def tensors(self, rgb: list[RGB], is_raw: bool) -> NDArray[np.float32]:
        """Returns pictures as the network reads them; raw ones are from 0 to 255."""
        side = self.side or 1
        row_NSS3 = np.empty((len(rgb), side, side, 3), np.float32)
        for row_SS3, picture in zip(row_NSS3, rgb, strict=True):  # sizes differ
            row_SS3[:] = square_of(picture, side, crop=self.fit == "crop")
        if not is_raw:
            row_NSS3 /= 255
            row_NSS3 -= np.asarray(self.mean, np.float32)
            row_NSS3 /= np.asarray(self.std, np.float32)
        return row_NSS3 if self.layout == "NHWC" else row_NSS3.transpose(0, 3, 1, 2)


def flat(value_N: NDArray[Any], width: int, uri: str) -> NDArray[Any]:
    """Returns (N, D) an output; raises StageError where it has another width than the columns."""
    if not len(value_N):
        return np.empty((0, width))
    value_ND = value_N.reshape(len(value_N), -1)
    if value_ND.shape[1] != width:
        found = f"an output of {value_ND.shape[1]} numbers a row, where {width} are named"
        raise StageError(found, uri, "mend `outputs`: [COLUMN, COLUMN, …], or {COLUMN: width}")
    return value_ND
