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
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("sha256", pa.string()),
    ]
)
TRUTH = pa.schema(
    [
        ("uid", pa.string()),
        ("source", pa.string()),
        ("image_key", pa.string()),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("lang", pa.string()),
        ("text_true", pa.string()),
        ("text_issue", pa.string()),
        ("swapped_in_group", pa.bool_()),
        ("image_issue", pa.string()),
        ("drawn_script", pa.string()),  # only of pools with words drawn over pictures
        ("link_issue", pa.string()),
        ("dup_kind", pa.string()),
        ("near_op", pa.string()),
        ("dup_cluster", pa.string()),
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
                "uid": row.uid,
                "source": row.drawing.source,
                "image_key": row.drawing.key,
                "concept": row.drawing.concept,
                "group": row.drawing.group,
                "lang": row.lang,
                "text_true": row.text_true,
                "text_issue": row.text_issue,
                "swapped_in_group": row.swapped_in_group,
                "image_issue": row.image_issue,
                "drawn_script": row.drawn_script,
                "link_issue": row.link_issue,
                "dup_kind": row.dup_kind,
                "near_op": row.near_op,
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
            parent[node] = parent[above] = parent.setdefault(above, above)
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


def write_truth(rows: Sequence[Row], files: Mapping[str, Made], file: Path) -> pa.Table:
    """Writes the truth by uid, and returns it."""
    table = truth_table(sorted(rows, key=lambda row: row.uid), files)
    pq.write_table(table, file)
    return table
