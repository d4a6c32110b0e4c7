"""`clipmill why`: what every stage stored for one sample, and why it left."""

import argparse
import json
from typing import TYPE_CHECKING

from pipeline.terminal import one_line
from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

if TYPE_CHECKING:
    from pipeline.ledger.why import Why

HELP = "what every stage stored for one sample, and why it was dropped"
EXAMPLES = """\
clipmill why 09cee89f --run run
clipmill why 09cee89f --run run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("uid", help="32 hex digits, or the first 8 or more of them")
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the sample's values, stage by stage."""
    from pipeline.ledger.answer import as_json
    from pipeline.ledger.why import why
    from pipeline.run_folder.state import latest

    answer = why(latest(options.run), options.uid)
    print(json.dumps(as_json(answer), indent=1) if options.json else text(answer))
    return DONE


def text(why: "Why") -> str:
    """What became of the sample, one sentence a cause, and its files; then a paragraph a stage."""
    from pipeline.ledger.verdict import caption, count, where
    from pipeline.run_folder.words import in_words

    lines = [f"{why.uid}  ({where(why.shard, why.position)})"]
    if why.copies > 1:
        lines.append(f"this uid stands in {why.copies} rows; the first is shown")
    last = {(end.cause, end.reason) if end.cause else end.stage: end.sentence for end in why.ends}
    lines += last.values()  # where one cause is that of several selects, in the last one's words
    lines += [f"exported by '{export.stage}' to {export.file}" for export in why.exported]
    for row in why.stages:
        verdict = "fine" if row.reason is None else one_line(in_words(row.reason))
        lines += ["", f"{row.stage}  {row.uses}: {verdict}"]
        stored = row.values.items()  # what a stage that failed has left out, its reason tells
        known = stored if row.reason is None else [it for it in stored if it[1] is not None]
        lines += [f"    {name:<22} {one_line(value)}" for name, value in known]
        if keeper := row.keeper:
            place = where(keeper.shard, keeper.position)
            lines.append(f"    {'which is':<22} {place}{caption(keeper)}")
        if row.keeper_of:
            lines.append(f"    {'keeper of':<22} {count(row.keeper_of)}")
    return "\n".join(lines)
