"""The leaderboard as a table for programs, as Markdown, and as lines for a terminal."""

from collections.abc import Sequence

import pyarrow as pa

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.bench.board import Board, Line
from clipmill.pipeline.ledger.proof.compare import Comparison
from clipmill.pipeline.run_folder.words import duration
from clipmill.pipeline.terminal import aligned

MINUS = "\N{MINUS SIGN}"


def table(board: Board) -> pa.Table:
    """A row for each arm and each of the headline and the tasks; shares, not points."""
    rows = []
    for line in board.lines:
        for metric in board.results.shown:
            cell = next(cell for cell in metric.cells if cell.arm == line.arm)
            found = dict(zip(board.results.baselines, cell.against, strict=True))
            own = {"raw": found.get("raw"), "random": found.get(board.random_of(line))}
            rows.append(
                {
                    "arm": line.arm,
                    "what": line.what,
                    "settings": ", ".join(f"{k} {v}" for k, v in line.settings.items()),
                    "rows": line.rows,
                    "epochs": line.epochs,
                    "seeds": cell.seeds,
                    "task": metric.task,
                    "metric": metric.metric,
                    "chance": metric.chance,
                    "smallest_visible": metric.visible,
                    **_interval("", cell.result),
                    **{k: v for name, of in own.items() for k, v in _apart(name, of).items()},
                    "near_chance": cell.near_chance,
                    "leaks": line.leaks.get(metric.task),
                    "seconds": line.seconds,
                    "samples_per_s": line.samples_per_s,
                    "warnings": "; ".join(line.warnings),
                }
            )
    return pa.Table.from_pylist(rows, SCHEMA)


APART = ("minus_{}", "minus_{}_low", "minus_{}_high", "level_{}")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("arm", "what", "settings")),
        *(("rows", pa.int64()), ("epochs", pa.float64()), ("seeds", pa.int32())),
        *((name, pa.string()) for name in ("task", "metric")),
        *((name, pa.float64()) for name in ("chance", "smallest_visible", "value", "low", "high")),
        *((name.format("raw"), pa.float64()) for name in APART),
        ("verdict_raw", pa.string()),
        *((name.format("random"), pa.float64()) for name in APART),
        ("verdict_random", pa.string()),
        *(("near_chance", pa.bool_()), ("leaks", pa.int64())),
        *((name, pa.float64()) for name in ("seconds", "samples_per_s")),
        ("warnings", pa.string()),
    ]
)


def _interval(prefix: str, of: Estimate | None) -> dict[str, float | None]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": getattr(of, name) if of else None for name in names}


def _apart(name: str, of: Comparison | None) -> dict[str, float | str | None]:
    values = (of.apart.value, of.apart.low, of.apart.high, of.level) if of else (None,) * 4
    named = zip((one.format(name) for one in APART), values, strict=True)
    return {**dict(named), f"verdict_{name}": of.verdict if of else None}


def markdown(board: Board) -> str:
    """A page of tables, the best arm first."""
    lines: list[str] = [
        f"# {len(board.lines)} arms at scale {board.scale}",
        "",
        said(board),
        "",
        *_grid(["arm", "rows", "epochs", board.title, f"{MINUS} raw", "", f"{MINUS} random", ""]),
    ]
    for line in board.lines:
        against = [word for of in (line.raw, line.random) for word in (_points(of), verdict(of))]
        cells = [line.arm, f"{line.rows:,}", epochs(line), estimate(line.result), *against]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_grid(["task", "metric", "chance", *(line.arm for line in board.lines)])]
    for row in board.results.tasks:
        of_arm = {cell.arm: estimate(cell.result) for cell in row.cells}
        values = [of_arm[line.arm] for line in board.lines]
        lines.append(f"| {' | '.join([row.task, row.metric, _share(row.chance), *values])} |")
    notes = [f"- {words}" for words in (*verdicts(board), *warnings(board))]
    return "\n".join([*lines, "", *notes]) + "\n"


def said(board: Board) -> str:
    """How to read it: what ranks, what the intervals hold, and what could have been seen."""
    seeds = sorted({line.seeds for line in board.lines})
    top = board.results.shown[0]
    fine = ", ".join(f"{task} {metric}" for task, metric in board.results.fine.items())
    parts = [
        f"Ranked by the {board.title}" + (f" ({fine})" if fine else ""),
        f"{board.samples_seen:,} samples seen by each model, seeds an arm:"
        f" {' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))}",
        "points of 100, with half of a 95 % interval that holds the noise of seeds and of items",
    ]
    visible = top.visible
    if visible is not None:
        parts.append(f"the smallest difference it could have seen: {100 * visible:.1f}")
    return "; ".join(parts) + "."


def text(board: Board) -> str:
    """The leaderboard for a terminal, and what each verdict is."""
    head = ["arm", "rows", "epochs", board.title, f"{MINUS} raw", f"{MINUS} random", "a training"]
    lines = [head]
    for line in board.lines:
        cost = duration(line.seconds) if line.seconds is not None else ""
        lines.append(
            [
                *(line.arm, f"{line.rows:,}", epochs(line), estimate(line.result)),
                *(_points(line.raw), _points(line.random), cost),
            ]
        )
    shown = aligned(lines, range(1, len(head)))
    verdict_lines, warned = verdicts(board), warnings(board)
    leaks = [f"{line.arm}: {leaked(line)}" for line in board.lines if line.leaks]
    parts = [shown, verdict_lines, warned, leaks and ["copies of the tasks' samples:", *leaks]]
    return "\n\n".join("\n".join(part) for part in [*parts, [said(board)]] if part)


def verdicts(board: Board) -> list[str]:
    """What is better than raw or than chance, a sentence each; then what is not, by whom."""
    every = [(line.arm, of) for line in board.lines for of in (line.raw, line.random) if of]
    words = [of.words for _, of in every if of.verdict in ("better", "worse")]
    same: dict[str, list[str]] = {}
    for arm, of in every:
        if of.verdict not in ("better", "worse"):
            whom = "raw" if of.baseline == "raw" else "as many rows by chance"
            how = "to" if of.verdict == "none" else ", against"
            same.setdefault(f"{of.words} {how} {whom}".replace(" ,", ","), []).append(arm)
    return [*words, *(f"{words}: {', '.join(arms)}" for words, arms in same.items())]


def warnings(board: Board) -> list[str]:
    """Each warning, and the arms that it is about."""
    about: dict[str, list[str]] = {}
    for line in board.lines:
        for words in line.warnings:
            about.setdefault(words, []).append(line.arm)
    return [f"{words}: {', '.join(arms)}" for words, arms in about.items()]


def estimate(of: Estimate | None) -> str:
    """`11.0 ± 0.4`; without an interval the value alone."""
    if of is None:
        return ""
    half = f" ± {100 * (of.high - of.value):.1f}" if of.high is not None else ""
    return f"{100 * of.value:.1f}{half}"


def epochs(line: Line) -> str:
    """How often a training saw each row."""
    return "" if line.epochs is None else f"{line.epochs:.1f}"


def verdict(of: Comparison | None) -> str:
    """The verdict, in a word or two."""
    words = {"none": "no difference", "unclaimed": "not claimed"}
    return words.get(of.verdict, of.verdict) if of else ""


def leaked(line: Line) -> str:
    """By task how many of its samples the arm's rows show or bear."""
    return ", ".join(f"{count:,} of {task}" for task, count in sorted(line.leaks.items()))


def _points(of: Comparison | None) -> str:
    if of is None:
        return ""
    half = f" ± {100 * of.half:.1f}" if of.half is not None else ""
    return f"{100 * of.apart.value:+.1f}{half}".replace("-", MINUS)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _grid(head: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
