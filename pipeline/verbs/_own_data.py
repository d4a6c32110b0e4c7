"""What `init` and `curate` share: their arguments, the question asked, the page on the data."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.terminal import aligned

if TYPE_CHECKING:
    import pyarrow as pa

    from clipmill.pipeline.own_data.preview import Preview
    from clipmill.pipeline.own_data.start import Start
    from clipmill.pipeline.own_data.unsure import UnsureError

ROLES = {
    "url": "links",
    "caption": "captions",
    "image": "pictures",
    "uid": "ids",
    "sha256": "pictures' SHA-256",
    "width": "pictures' width",
    "height": "pictures' height",
}
FORMS = ("parquet", "webdataset", "huggingface")
WEB = ("hf://datasets/", "hf://", "http://", "https://")
SHOWN = 5  # rows
NARROWEST = 12  # columns of a terminal that a text gets
CAUSES = {  # of the reasons that an ingest stage gives
    "no_url": "no link",
    "no_image": "no picture",
    "undecodable": "a broken picture",
    "unparsable": "a line that is no row",
    "bad_value": "a value that is not of its column's type",
    "bad_uid": "an id that is no 32 hex digits",
    "bad_embedding": "a vector of another width",
    "bad_caption": "a caption that is no UTF-8",
    "too_large": "a file that is too large",
    "unreadable": "a file that cannot be read",
    "hash_mismatch": "another SHA-256 than stated",
}


def add_data(parser: argparse.ArgumentParser) -> None:
    """`DATA`, its columns by name, and what is to be kept of it."""
    parser.add_argument("data", metavar="DATA", help="a file, a folder, a glob or a URI")
    given = parser.add_argument_group("columns of a table, where their names do not tell")
    for role, words in ROLES.items():
        given.add_argument(f"--{role}", metavar="COLUMN", help=f"the {words}")
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--keep", type=float, metavar="SHARE", help="the best share by a score: 0.3 is 30 %%"
    )
    kept.add_argument("--score", metavar="COLUMN", help="the score: a column of the data")
    kept.add_argument(
        "--model", metavar="MODEL", help="the score: by a model, open_clip:NAME/TAG or reference"
    )
    kept.add_argument(
        "--trusted", metavar="DATA", help="the score: learned from pairs whose captions fit"
    )
    kept.add_argument(
        "--to", nargs="+", choices=FORMS, help="forms of the export (default: parquet)"
    )


def started(options: argparse.Namespace, verb: str, run_as: str, asks: bool) -> "Start":
    """The data and a recipe for them; where the data leave a question open, a terminal is asked."""
    from clipmill.pipeline.own_data.start import Asked, start
    from clipmill.pipeline.own_data.unsure import UnsureError

    is_asked = asks and sys.stdin.isatty() and sys.stderr.isatty()
    while True:
        asked = Asked(
            path=_whole_path(options.data),
            columns={role: getattr(options, role) for role in ROLES if getattr(options, role)},
            score=options.score,
            model=options.model,
            trusted=options.trusted and _whole_path(options.trusted),
            keep=options.keep,
            to=tuple(dict.fromkeys(options.to or Asked.to)),
        )
        try:
            return start(asked, command(options, verb), run_as)
        except UnsureError as unsure:
            if not is_asked or (answer := _ask(unsure)) is None:
                raise
            setattr(options, unsure.ask, answer)


def command(options: argparse.Namespace, verb: str) -> str:
    """The command that says all again, answers given on a terminal among it."""
    words = ["clipmill", verb, options.data]
    for name in (*ROLES, "keep", "score", "model", "trusted"):
        value = getattr(options, name)
        words += [f"--{name}", f"{value:g}" if name == "keep" else value] if value else []
    words += ["--to", *options.to] if options.to else []
    return shlex.join(words)


def page(start: "Start", given: str, overrides: Sequence[str] = ()) -> str:
    """What the data are, five rows of them, and how many of those looked at are of no use.

    A note that asks for a `--set` is left out where that is given.
    """
    data = start.data
    about = "" if data.is_exact else "about "
    rows = "rows are counted as they are read" if data.rows is None else _rows(data.rows)
    lines = [given, f"  {'is':<16} {data.what}, {about}{rows}"]
    lines += [f"  {role:<16} {name}" for role, name in data.columns.items()]
    if data.aside:
        aside = ", ".join(f"{count:,} {kind}" for kind, count in data.aside.items())
        lines.append(f"  {'not used':<16} {aside}")
    keys = [override.partition("=")[0] for override in overrides]
    notes = [note for note in data.notes if not any(key in note for key in keys)]
    lines += [f"  {'note':<16} {note}".replace("\n", f"\n{'':<19}") for note in notes]
    lines += ["", *_table(start.preview.rows.slice(0, SHOWN), data.scores), ""]
    return "\n".join([*lines, _usable(start.preview, data.rows)])


def _usable(preview: "Preview", rows: int | None) -> str:
    """How many of the rows that were looked at can be used, and why others cannot."""
    looked = preview.looked_at
    which = f"{'all' if rows == looked else 'the first'} {_rows(looked)}"
    if not preview.unusable:
        return f"{which} can be used" if looked else "no rows"
    causes = ", ".join(
        f"{count:,} {'has' if count == 1 else 'have'} {CAUSES.get(cause, cause)}"
        for cause, count in preview.unusable.items()
    )
    fine = looked - sum(preview.unusable.values())
    return f"of {which}, {fine:,} can be used: {causes}"


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _table(rows: "pa.Table", scores: tuple[str, ...]) -> list[str]:
    """The rows as lines of the terminal's width: caption, link or file, picture, scores."""
    names = {"text": "caption", "url": "link or file", "image_bytes": "picture"}
    names |= {name: name for name in scores}
    there = [
        name for name in names if name in rows.column_names and rows[name].null_count < len(rows)
    ]
    shown = {names[name]: rows[name].to_pylist() for name in there}
    cells = {head: [head, *map(_cell, values)] for head, values in shown.items()}
    if "picture" in cells:
        cells["picture"][1:] = [f"{cell} bytes" if cell else "" for cell in cells["picture"][1:]]
    lines = list(zip(*cells.values(), strict=True))
    return aligned(lines, width=shutil.get_terminal_size().columns, indent=2)


def _cell(value: Any) -> str:
    from clipmill.pipeline.terminal import one_line

    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else one_line(value)


def _ask(unsure: "UnsureError") -> str | None:
    """The answer of a person; None where the terminal says no more."""
    _, where, _ = unsure.args
    names = list(unsure.candidates)
    print(f"{where}: {len(names)} may be the {unsure.ask}", file=sys.stderr)
    for number, (name, example) in enumerate(unsure.candidates.items(), 1):
        print(f"  {number}  {name}{example and f'   {example}'}", file=sys.stderr)
    while True:
        print(
            f"which is the {unsure.ask}? 1 to {len(names)}: ", end="", file=sys.stderr, flush=True
        )
        answer = sys.stdin.readline()
        if not answer:
            return None
        word = answer.strip()
        if word in names:
            return word
        if word.isdecimal() and 1 <= int(word) <= len(names):
            return names[int(word) - 1]


def _whole_path(path: str) -> str:
    """The path from the root, so that the recipe runs anywhere; a URI as it is, without keys."""
    from clipmill.metadata.keys import without_keys
    from clipmill.metadata.storage import KEYS

    if not path:
        raise RecipeError("an empty path", "DATA", "name a file, a folder, a glob or a URI")
    if path.startswith(WEB):
        do = "download it first, for example with: " + (
            f"hf download --repo-type dataset --local-dir data {path.removeprefix(WEB[0])}"
            if path.startswith(WEB[0])
            else f"curl -LO {shlex.quote(path)}"
        )
        raise RecipeError("data on the web", path, do)
    if without_keys(path) != path:
        raise RecipeError("a URI with keys in it", path, f"a recipe stores no keys: {KEYS}")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
