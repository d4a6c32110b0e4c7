"""`clipmill export`: writes a stage's rows to a folder."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from clipmill.pipeline.terminal import one_line, plural
from clipmill.pipeline.verbs._options import (
    add_executor,
    add_json,
    add_variant,
    answered,
    executor,
    names,
    opened,
)

if TYPE_CHECKING:
    from clipmill.pipeline.export import Exported

HELP = "the rows that a stage keeps, or loses, as files in a folder"
EXAMPLES = """\
clipmill export --run run --to webdataset --out tars
clipmill export --run run --to csv --columns text,url,clip_score --out table
clipmill export --run run --to parquet --captions short.captions --out all
clipmill export --run run --dropped "min_side >= 200" --to parquet --out small
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_variant(parser)
    parser.add_argument(
        "--to",
        required=True,
        action="extend",
        nargs="+",
        choices=("parquet", "webdataset", "huggingface", "map", "csv", "jsonl", "uid_list"),
        help="with pictures: parquet, webdataset, huggingface; for embedding-atlas: map;"
        " tables: csv, jsonl; ids: uid_list; several: each in a folder of --out",
    )
    parser.add_argument(
        "--out", required=True, metavar="URI", help="folder to write to: a path or s3://…"
    )
    parser.add_argument(
        "--stage",
        metavar="STAGE",
        help="whose rows leave; default: the last select stage, if there is one",
    )
    parser.add_argument(
        "--columns",
        type=names,
        default=(),
        metavar="A,B,…",
        help="of a table: which, in this order; with pictures: which more",
    )
    parser.add_argument(
        "--captions",
        type=names,
        default=(),
        metavar="A,B,…",
        help="with pictures: lists of captions that leave beside the original, in this order, as"
        " made.captions; default: those that the last caption stage leaves",
    )
    parser.add_argument(
        "--dropped", metavar="REASON", help="the rows that a stage lost for this reason, instead"
    )
    parser.add_argument(
        "--replace", action="store_true", help="delete another export that --out holds"
    )
    add_json(parser)
    add_executor(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the files; prints how many rows were exported and how many left out."""
    from clipmill.metadata.storage import Storage
    from clipmill.pipeline.export import ExportRequest, export
    from clipmill.pipeline.ledger.selection.dropped import dropped
    from clipmill.pipeline.progress import watcher

    state = opened(options)
    request = ExportRequest(
        to=options.to[0], stage=options.stage, columns=options.columns, captions=options.captions
    )
    out = Storage(options.out)
    is_one = len({*options.to}) == 1  # several: each in a folder of its own
    outs = {to: options.out if is_one else out.child(to).uri for to in options.to}
    if options.dropped is not None:
        lost = dropped(state, options.dropped, options.stage)
        request = replace(request, stage=lost.stage, dropped=lost.reason, decided=lost.decided)
    with executor(options) as workers, watcher() as watch:
        answers = [
            export(state, replace(request, to=to), place, workers, watch, options.replace)
            for to, place in outs.items()
        ]
    if len(answers) == 1:
        return answered(answers[0], options, text)
    return answered(answers, options, lambda answers: "\n".join(map(text, answers)))


def text(answer: "Exported") -> str:
    """Returns the rows exported and their folder, rows left out, and whether files were written."""
    from clipmill.pipeline.run_folder.words import size

    rows, files = plural(answer.exported, "row"), plural(len(answer.files), "file")
    stage = f"'{one_line(answer.stage)}'"
    whose = f"of {stage}"
    if answer.dropped is not None:
        whose = f"that {stage} lost for '{one_line(answer.dropped)}'"
    lines = [f"{rows} {whose} in {one_line(answer.out)}  ({files}, {size(answer.bytes)})"]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in answer.left.items())
    if left_out and answer.dropped is None:
        lines.append(f"left out of {answer.rows:,}: {left_out}")
    if not answer.is_selected and answer.dropped is None:
        lines.append(f"no stage up to {stage} drops rows: all that have a value are here")
    if not answer.copied:
        lines.append("found done: nothing was written")
    return "\n".join(lines)
