"""Scores how near an image is to target images: NormSim."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.metadata.fingerprint import digest
from clipmill.metadata.globs import FoundFile, files_of
from clipmill.metadata.keys import redacted
from clipmill.metadata.schema import IMAGE_EMBEDDING, KEEP, Column
from clipmill.metadata.storage import Storage
from clipmill.pipeline.dataset import Context, Inputs, Task
from clipmill.pipeline.errors import StageError
from clipmill.pipeline.stage import DatasetStage, Gigabytes, NonEmpty, location
from clipmill.stages.ops.outside import named, need_either
from clipmill.stages.ops.tables.rows import DROPPED, dropped_before, put_table, with_reason
from clipmill.stages.ops.vectors.matrices import as_matrix, from_matrix, unit_rows, unusable
from clipmill.stages.ops.vectors.nearest import nearest
from clipmill.stages.ops.vectors.targets import EMBED_BOTH, TargetVectors, spans

# Shapes: N rows, M targets, D width of a vector.

FILE = "targets-{:05d}.parquet"  # in out/
GIVE = "name a Parquet of vectors, a folder of them, or an export as stage:NAME"
NORM_SIM = Column(
    "norm_sim", pa.float32(), "cosine", "Norm of the cosines to all targets.", better="high"
)


@dataclass(frozen=True, kw_only=True)
class NormSim(DatasetStage):
    """Norm of a row's cosines to all targets: the greatest for `p: inf`, the root of the sum of
    their squares for `p: 2`; null without an embedding.

    Targets are vectors, as select.image_based takes them: of an export, or of Parquet files whose
    schema gives their model as `clipmill.model`. Those of another model or width are refused; a
    pipeline of their own embeds pictures. Each worker holds all targets.

    Source: NormSim (Wang et al. 2024), and its released code. Departs: by `p: inf` an opposite
    target is far; the code takes absolute cosines, so that it is near.
    Error: max 2e-7 for `p: inf`, relative 1e-6 for `p: 2`, against float64 over 600 rows.
    Example: {after: [ingest.image_folder, embed.clip], targets: targets.parquet}
    """

    targets: NonEmpty  # stage:NAME of an export, a Parquet of vectors, or a folder of them
    p: Literal[2, "inf"] = "inf"  # norm: of all targets, or the nearest alone
    column: NonEmpty = IMAGE_EMBEDDING.name  # column of the embeddings to compare
    memory_gb: Gigabytes = location(4)  # memory of one worker, in GB

    version = 2
    determinism = "exact"
    takes = ("rows", "targets")
    optional_reads = (KEEP,)
    writes = (NORM_SIM,)
    reasons = (DROPPED, "no_embedding", "zero_or_nan_embedding")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (replace(IMAGE_EMBEDDING, name=self.column),)

    def look(self) -> None:
        if uri := named(self.targets):
            need_either(uri, "targets", GIVE)
            self.parquets()

    def outside(self) -> str:
        """Returns a digest of names, sizes and times of the targets' files."""
        return digest([*map(astuple, self.parquets())]) if named(self.targets) else ""

    def parquets(self) -> list[FoundFile]:
        """Returns the files of vectors by name; StageError if there is none."""
        files = [file for file in files_of(self.targets) if file.name.endswith(".parquet")]
        if not files:
            raise StageError(f"no Parquet in '{redacted(self.targets)}'", "key `targets`", GIVE)
        return files

    def run(self, inputs: Inputs, ctx: Context) -> None:
        vectors = TargetVectors(
            targets=self.targets,
            column=self.column,
            stage=ctx.worker.stage,
            target_folder=inputs.targets,
        )
        if inputs.targets is not None:
            items = vectors.exported(inputs.targets)
        else:
            files = [{"file": f.name, "digest": digest(astuple(f))} for f in self.parquets()]
            items = [piece for f in files for piece in spans(f, rows_in(vectors, f["file"]))]
        vectors.model_of(items, None, inputs)
        ctx.say("reading targets")
        items = [{**item, "number": number} for number, item in enumerate(items)]
        counts = ctx.map(partial(put_units, vectors), items)
        widths = {count["wide"] for count in counts if count["targets"]}
        if len(widths) != 1:
            wide = " and ".join(map(str, sorted(widths)))
            found = f"targets {wide} wide" if widths else "no target"
            raise StageError(found, vectors.where("targets"), EMBED_BOTH if widths else GIVE)
        ctx.say("")
        read = partial(compared, ctx.folder, len(items), self.p, digest(items))
        scored = partial(self.scored, read, vectors.where("column"))
        ctx.restore(ctx.map_shards(scored, inputs.rows))

    def scored(
        self, read: Callable[[], NDArray[np.floating]], where: str, rows: pa.Table
    ) -> pa.Table:
        """Returns the norm of every row, or a reason."""
        target_MD = read()
        vector = rows[self.column]
        row_ND = as_matrix(vector)
        broken = [dropped_before(rows), vector.is_null(), pa.array(unusable(row_ND))]
        reason = pc.case_when(pc.make_struct(*broken), *self.reasons)
        undefined_N = reason.is_valid().to_numpy(zero_copy_only=False)
        unit_ND = unit_rows(row_ND[~undefined_N])
        if len(unit_ND) and unit_ND.shape[1] != target_MD.shape[1]:
            found = f"embeddings {unit_ND.shape[1]} wide, and targets {target_MD.shape[1]} wide"
            raise StageError(found, where, EMBED_BOTH)
        norm_N = np.zeros(len(rows), np.float32)
        if len(unit_ND) and self.p == 2:
            wide_ND = unit_ND.astype(np.float64)
            square_N = np.vecdot(wide_ND @ target_MD, wide_ND)
            norm_N[~undefined_N] = np.sqrt(np.maximum(square_N, 0))  # rounding takes it below 0
        elif len(unit_ND):
            norm_N[~undefined_N] = nearest(unit_ND, target_MD)[1][:, 0]
        return with_reason(rows, {NORM_SIM.name: pa.array(norm_N, mask=undefined_N)}, reason)


def rows_in(vectors: TargetVectors, file: str) -> int:
    """Returns the rows of a Parquet of vectors; StageError for one without their column."""
    with vectors.opened(file) as parquet:
        schema, rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
    dtype = schema.field(vectors.column).type if vectors.column in schema.names else pa.null()
    if not pa.types.is_floating(getattr(dtype, "value_type", pa.null())):
        found = f"no column '{vectors.column}' of vectors"
        raise StageError(found, vectors.at(file), "write it as lists of floats")
    return rows


def put_units(vectors: TargetVectors, item: dict[str, Any], task: Task) -> dict[str, int]:
    """Stores a piece's targets at length 1; those without a direction are left out."""
    none = [np.zeros((0, 1), np.float32)]
    try:
        parts = [as_matrix(some) for some, _ in vectors.read(item["file"], item["start"])]
        unit_MD = unit_rows(np.concatenate([part for part in parts if len(part)] or none))
    except ValueError as error:  # of as_matrix, or of np.concatenate
        raise StageError(
            "vectors of several widths", vectors.at(item["file"]), EMBED_BOTH
        ) from error
    unit_MD = unit_MD[~unusable(unit_MD)]
    put_table(FILE.format(item["number"]), pa.table({"unit": from_matrix(unit_MD)}), task)
    return {"targets": len(unit_MD), "wide": unit_MD.shape[1]}


@lru_cache(maxsize=1)  # read once for all shards; again if the digest is another
def compared(folder: str, files: int, p: Literal[2, "inf"], digest: str) -> NDArray[np.floating]:
    """Returns (M, D) the stored targets, or (D, D) the sum of their outer products for p = 2."""
    parts = []
    for number in range(files):
        with Storage(folder).open(f"out/{FILE.format(number)}") as source:
            parts.append(as_matrix(pq.read_table(source)["unit"]))
    unit_MD = np.concatenate([part for part in parts if len(part)])
    return unit_MD if p == "inf" else unit_MD.astype(np.float64).T @ unit_MD
