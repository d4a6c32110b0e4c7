"""`clipmill funnel`: where the pool's rows went, by stage and reason."""

import argparse
import json
from typing import TYPE_CHECKING

from pipeline.terminal import one_line
from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run

if TYPE_CHECKING:
    from pipeline.ledger.funnel import Funnel

HELP = "where the pool's rows went, by stage and reason"
EXAMPLES = """\
clipmill funnel --run run
clipmill funnel --run run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_run(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the counts."""
    from pipeline.ledger.answer import as_json
    from pipeline.ledger.funnel import funnel
    from pipeline.run_folder.state import latest

    answer = funnel(latest(options.run))
    print(json.dumps(as_json(answer), indent=1) if options.json else text(answer))
    return DONE


def text(funnel: "Funnel") -> str:
    """Stages with their reasons, the waterfall of each end, the exports."""
    lines = [funnel.run, ""]
    if not funnel.stages:
        lines.append("none of its complete stages has rows")
    width = max((len(stage.stage) for stage in funnel.stages), default=0)
    for stage in funnel.stages:
        lines.append(
            f"{stage.stage:<{width}}  {stage.uses:<22} {stage.rows:>10,} rows"
            f" {stage.fine:>10,} fine"
        )
        for kind in ("failed", "upstream", "dropped"):
            for code, count in sorted(getattr(stage, kind).items(), key=lambda item: -item[1]):
                lines.append(f"{'':<{width}}    {kind:<10} {count:>10,}  {one_line(code)}")
        if stage.not_selected:
            lines.append(f"{'':<{width}}    {'not selected':<10} {stage.not_selected:>8,}")
        if stage.listed and stage.listed["missing"]:
            lines.append(
                f"{'':<{width}}    {'no row for':<10} {stage.listed['missing']:>10,}"
                f"  of {stage.listed['uids']:,} listed uids"
            )
    if funnel.repeated_uids:
        lines += ["", f"{funnel.repeated_uids:>10,}  rows have the uid of an earlier row"]
    for end in funnel.ends:
        lines += ["", f"{end.rows:>10,}  rows in the pool"]
        left = end.rows
        for cause in end.causes:
            left -= cause.rows
            lines.append(
                f"{-cause.rows:>10,}  {cause.stage}: {one_line(cause.reason)}"
                f"  ({left:,} left; why {cause.example[:8]})"
            )
        share = end.kept / end.rows if end.rows else 0.0
        lines.append(f"{end.kept:>10,}  kept by '{end.stage}' ({share:.1%})")
    for export in funnel.exports:
        lines += [
            "",
            f"{export.stage}: {export.files} files,"
            f" {export.bytes / 1e6:,.1f} MB in {export.folder}",
        ]
        if export.rows is not None:
            left_out = "".join(f", {count:,} {why}" for why, count in export.left.items())
            lines.append(f"    {export.exported:,} of {export.rows:,} rows{left_out}")
    for subset in funnel.subsets:
        lacking = f", which lacks {subset.lacking:,}" if subset.lacking else ""
        lines += [
            "",
            f"{subset.stage}: {subset.read:,} of the {subset.kept:,} rows that '{subset.select}'"
            f" keeps, read from '{subset.data}'{lacking}",
        ]
    return "\n".join(lines)
