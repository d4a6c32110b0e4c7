"""`clipmill why`: what every stage stored for one sample, and why it left."""

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.terminal import cut, one_line
from pipeline.verbs import DONE
from pipeline.verbs._options import add_json, add_run, add_variant, opened

if TYPE_CHECKING:
    from pipeline.ledger.captions import Texts
    from pipeline.ledger.why import Why

HELP = "what every stage stored for one sample, and why it was dropped"
WIDTH = 80  # columns of a terminal
MOST = 400  # characters of a caption
EXAMPLES = """\
clipmill why 09cee89f --run run
clipmill why 09cee89f --run run --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("uid", help="32 hex digits, or the first 8 or more of them")
    add_run(parser)
    add_variant(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the sample's values, stage by stage."""
    from pipeline.ledger.answer import as_json
    from pipeline.ledger.why import why

    answer = why(opened(options), options.uid)
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
    below = _told_below(why)
    for row in why.stages:
        verdict = "fine" if row.reason is None else one_line(in_words(row.reason))
        lines += ["", f"{row.stage}  {row.uses}: {verdict}"]
        stored = row.values.items()  # what a stage that failed has left out, its reason tells
        known = stored if row.reason is None else [it for it in stored if it[1] is not None]
        known = [it for it in known if it[0] not in below]
        lines += [f"    {name:<22} {one_line(value)}" for name, value in known]
        if keeper := row.keeper:
            place = where(keeper.shard, keeper.position)
            lines.append(f"    {'which is':<22} {place}{caption(keeper)}")
        if row.keeper_of:
            lines.append(f"    {'keeper of':<22} {count(row.keeper_of)}")
    for texts in why.captions:
        lines += ["", *_captions(texts)]
    return "\n".join(lines)


def _told_below(why: "Why") -> set[str]:
    """The columns that stand beside each caption, at the end."""
    from pipeline.ledger.captions import LISTS

    values = {name for texts in why.captions for it in texts.texts for name in it.values}
    return {*values, *LISTS} if why.captions else set()


def _captions(texts: "Texts") -> Iterator[str]:
    """Each text under where it comes from and whether it stays; its values below."""
    by = f", chosen by '{texts.chosen_by}'" if texts.chosen_by else ""
    yield f"captions of '{texts.stage}'{by}"
    if texts.fell_back:
        yield "none was good enough: back to the original"
    for number, it in enumerate(texts.texts, 1):
        made = [it.source or "of unknown source", *((it.label,) if it.label != it.source else ())]
        made += [
            f"{name} {value}" for name, value in (("by", it.model), ("with", it.prompt_id)) if value
        ]
        verdict = f"left out: {it.reason}" if it.reason else "kept" if texts.chosen_by else ""
        yield from _lines(
            f"{number:>2}  ", "; ".join(filter(None, [", ".join(filter(None, made)), verdict]))
        )
        yield from _lines("      ", cut("none" if it.text is None else it.text, MOST))
        values = [
            f"{name.removeprefix('text_')} {_short(value)}" for name, value in it.values.items()
        ]
        yield from _lines("      ", ", ".join(values))


def _short(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _lines(before: str, text: str) -> list[str]:
    """The words of a text in lines of a terminal's width, each of them begun alike."""
    rest = " " * len(before)
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=before, subsequent_indent=rest
    )
