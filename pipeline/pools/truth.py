"""Computes the truth about every row: its duplicate cluster, whether it is usable and good."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.pools.faults import HARMLESS_LINKS, NO_LONGER_THE_SOURCE
from clipmill.pipeline.pools.plan import Row
from clipmill.pipeline.pools.render import Made

ROWS_PER_FILE = 5_000

METADATA = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "url", "text")),
        *((name, pa.int64()) for name in ("original_width", "original_height")),
        ("sha256", pa.string()),
    ]
)
TRUTH = pa.schema(
    [
        *((name, pa.string()) for name in ("uid", "source", "image_key", "concept", "group")),
        *((name, pa.string()) for name in ("lang", "text_true", "text_issue")),
        ("swapped_in_group", pa.bool_()),
        ("image_issue", pa.string()),
        ("drawn_script", pa.string()),  # only of pools with words drawn over pictures
        *((name, pa.string()) for name in ("link_issue", "dup_kind", "near_op", "dup_cluster")),
        ("cluster_size", pa.int32()),
        ("eval_near", pa.bool_()),
        ("usable", pa.bool_()),
        ("is_good", pa.bool_()),
    ]
)


def truth_table(rows: Sequence[Row], files: Mapping[str, Made]) -> pa.Table:
    """Returns the truth about rows, in their order."""
    clusters = duplicate_clusters(rows, files)
    sizes = Counter(clusters.values())
    usable = {row.uid for row in rows if is_usable(row)}
    good: dict[str, Row] = {}
    for row in rows:
        best = good.get(clusters[row.uid])
        if row.uid in usable and (best is None or _preference(row) < _preference(best)):
            good[clusters[row.uid]] = row
    is_good = {row.uid for row in good.values()}
    table = pa.Table.from_pylist(
        [
            {
                **vars(row),  # of which the schema takes its columns
                "source": row.drawing.source,
                "image_key": row.drawing.key,
                "concept": row.drawing.concept,
                "group": row.drawing.group,
                "dup_cluster": clusters[row.uid],
                "cluster_size": sizes[clusters[row.uid]],
                "eval_near": row.is_evaluation,
                "usable": row.uid in usable,
                "is_good": row.uid in is_good,
            }
            for row in rows
        ],
        schema=TRUTH,
    )
    return table if any(row.drawn_script for row in rows) else table.drop_columns("drawn_script")


def is_usable(row: Row) -> bool:
    """Returns whether a person would train on the row, apart from copies."""
    link_works = row.link_issue is None or row.link_issue in HARMLESS_LINKS
    return link_works and not (row.text_issue or row.image_issue or row.is_evaluation)


def _preference(row: Row) -> tuple[bool, str]:
    return row.dup_kind is not None, row.uid


def duplicate_clusters(rows: Sequence[Row], files: Mapping[str, Made]) -> dict[str, str]:
    """Returns uid to the least uid among the copies of the row's picture.

    Rows are joined by art, by equal source pictures and by equal files. A placeholder or a printed
    caption replaces the row's drawing: it is joined by its bytes alone, else one placeholder would
    join half the pool.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]  # halves the way for the next search
            node = parent[node]
        return node

    for row in rows:
        nodes = [f"file {files[row.uid].sha256}"]
        if row.image_issue not in NO_LONGER_THE_SOURCE:
            nodes.append(f"image {sha256(row.drawing.image).hexdigest()}")
            if row.drawing.art:
                nodes.append(f"art {row.drawing.art}")
        for node in nodes:
            parent[root(node)] = root(row.uid)
    least: dict[str, str] = {}
    for row in rows:
        top = root(row.uid)
        least[top] = min(least.get(top, row.uid), row.uid)
    return {row.uid: least[root(row.uid)] for row in rows}


def write_metadata(
    records: Sequence[Mapping[str, object]], folder: Path, schema: pa.Schema = METADATA
) -> None:
    """Writes records in DataComp's form: sorted by uid, 5,000 a file."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(records, key=lambda record: str(record["uid"]))
    for number, start in enumerate(range(0, len(ordered), ROWS_PER_FILE)):
        part = list(ordered[start : start + ROWS_PER_FILE])
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"{number:08d}.parquet")
