"""`clipmill export`: the rows that a stage of a run keeps, written to a folder."""

import argparse
import json

from pipeline.verbs import DONE
from pipeline.verbs._options import add_executor, add_json, add_run, executor

HELP = "write the rows a stage of a run keeps to a folder"
EXAMPLES = """\
clipmill export shards --run run --stage subset --to webdataset
clipmill export s3://bucket/set --run run --stage subset --to parquet
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("path", metavar="PATH", help="folder to write to: a path or s3://…")
    add_run(parser)
    add_json(parser)
    parser.add_argument("--stage", required=True, metavar="STAGE", help="stage whose rows go out")
    parser.add_argument(
        "--to",
        required=True,
        choices=("parquet", "webdataset", "uid_list"),
        help="form of the files",
    )
    add_executor(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the files and prints how many."""
    from pipeline.export import export
    from pipeline.progress import watcher
    from pipeline.run_folder.state import latest

    state = latest(options.run)
    with executor(options) as workers, watcher() as watch:
        files = export(state, options.stage, options.to, options.path, workers, watch)
    print(json.dumps(files) if options.json else f"{len(files)} files in {options.path}")
    return DONE
