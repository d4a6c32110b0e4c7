"""`clipmill pool`: builds a raw pool with known faults, serves it, scores a run on it."""

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.extras import missing
from clipmill.pipeline.terminal import cut
from clipmill.pipeline.verbs import DONE
from clipmill.pipeline.verbs._options import add_json, add_kind, add_run, answered, check_workers

if TYPE_CHECKING:
    from clipmill.pipeline.ledger.findings.planted import KindRows, Planted

HELP = "build a raw pool whose faults are known, serve it, score a run on it"
EXAMPLES = """\
clipmill pool generated --out pool --rows 200
clipmill pool demo --out demo/pool
clipmill pool serve demo/pool
clipmill pool score demo/pool --run run
"""
SHOWN_CAUSES = 4


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every kind of pool, of `serve` and of `score`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in (
        ("demo", "17,950 real pairs from npm packages, with planted faults"),
        ("full", "66,974 pairs from npm and Debian packages, with planted faults"),
        ("docs", "26,529 pairs from HTML manuals in Debian packages: no planted fault"),
        ("photos", "60,000 product photos from a Debian package, a fifth of captions swapped"),
        ("generated", "a tiny drawn pool, with planted faults: no network, no package"),
    ):
        build = add_kind(kinds, kind, text)
        build.add_argument(
            "--out", required=True, type=Path, metavar="DIR", help="folder to write the pool to"
        )
        if kind == "photos":  # has no URLs
            continue
        build.add_argument(
            "--port",
            type=int,
            default=8765,
            metavar="N",
            help="port that its URLs name (default: %(default)s)",
        )
        if kind == "docs":  # draws nothing
            continue
        build.add_argument(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="another draws other faults (default: %(default)s)",
        )
        build.add_argument(
            "--workers", type=int, metavar="N", help="processes that draw (default: one a core)"
        )
        build.add_argument(
            "--overlaid",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="of pictures with words or a mark drawn over them (default: none)",
        )
        if kind == "generated":
            build.add_argument("--rows", type=int, metavar="N", help="rows (default: 600)")
    serve = add_kind(kinds, "serve", "serve a pool's images over loopback HTTP")
    serve.add_argument("directory", type=Path, metavar="DIR", help="the pool's folder")
    serve.add_argument(
        "--port", type=int, metavar="N", help="port to serve at (default: the one its URLs name)"
    )
    score = add_kind(kinds, "score", "what a run caught of the faults planted in a pool")
    score.add_argument("directory", type=Path, metavar="DIR", help="the pool's folder")
    add_run(score)
    add_json(score)


def run(options: argparse.Namespace) -> int:
    """Builds, serves or scores a pool."""
    check_workers(getattr(options, "workers", None))
    least = 0 if options.kind == "serve" else 1  # 0 serves at a free port
    if (port := getattr(options, "port", None)) is not None and not least <= port < 1 << 16:
        raise RecipeError(f"--port {port}", "the arguments", f"give {least} to 65535")
    match options.kind:
        case "serve":
            from clipmill.pipeline.pools.server import serve

            serve(options.directory, options.port)
        case "score":
            from clipmill.pipeline.ledger.findings.planted import planted
            from clipmill.pipeline.run_folder.state import latest

            return answered(planted(latest(options.run), options.directory), options, text)
        case _:
            _build(options)
    return DONE


def _build(options: argparse.Namespace) -> None:
    for module in ("resvg_py", "fontpkg_noto_sans"):
        if importlib.util.find_spec(module) is None:
            raise missing(module, f"clipmill pool {options.kind}, which needs it")
    out, then = options.out, f"\nnext: clipmill pool serve {shlex.quote(str(options.out))}"
    if options.kind == "docs":
        from clipmill.pipeline.pools.docs import build_docs

        counts = build_docs(out, port=options.port)
        for name, reason in counts["missing"].items():
            print(f"left out: {name}: {reason}", file=sys.stderr)
        held_out = f"{counts['held_out']:,} of other packages in {out}/held_out/metadata"
        print(f"{out}: {counts['rows']:,} rows in {out}/metadata, {held_out}{then}")
        return
    if options.kind == "photos":  # has no URLs to serve
        from clipmill.pipeline.pools.photos import build_photos

        counts, then = build_photos(out), ""
        more = f"{counts['tasks']:,} test pictures"
    else:
        from clipmill.pipeline.pools.build import build_pool

        counts = build_pool(
            options.kind,
            out,
            seed=options.seed,
            workers=options.workers,
            port=options.port,
            rows=getattr(options, "rows", None),
            overlaid=options.overlaid,
        )
        more = f"{counts['trusted']:,} trusted pairs"
    good = f"{counts['good']:,} of them without a fault"
    print(f"{out}: {counts['rows']:,} rows in {out}/metadata, {good}; {more}{then}")


def text(planted: "Planted") -> str:
    """Returns Markdown tables: one for each select stage, and how well scores detect faults."""
    from clipmill.pipeline.ledger.findings.planted import MAX_VALUES

    lines = []
    for judged in planted.selects:
        lines += [
            f"'{judged.stage}' keeps {judged.kept:,} of {judged.rows:,} rows:",
            "",
            "| planted | rows | caught by | kept |",
            "|---|---:|---|---:|",
            *map(_line, judged.planted),
            "",
        ]
    if planted.detection:
        lines += ["| captions told from good ones | rows | AUC | |", "|---|---:|---:|---|"]
    for row in planted.detection:
        area = f"{row.auc.value:.3f} ({row.auc.low:.3f} to {row.auc.high:.3f})"
        lines.append(f"| {row.kind} | {row.rows:,} | {area} | {row.column} of {row.stage} |")
    for column, values in planted.unjudged.items():
        lines.append(f"not judged: {column}, of {values:,} values (at most {MAX_VALUES})")
    return "\n".join(lines).rstrip()


def _line(row: "KindRows") -> str:
    causes = list(row.caught.items())
    shown = [f"{cut(cause)} {count:,}" for cause, count in causes[:SHOWN_CAUSES]]
    if len(causes) > SHOWN_CAUSES:
        shown.append(f"other {sum(count for _, count in causes[SHOWN_CAUSES:]):,}")
    mark = "" if row.harmless else " missed" if row.kept else ""
    return f"| {row.kind} | {row.rows:,} | {', '.join(shown) or 'none'} | {row.kept:,}{mark} |"
