"""Formats the leaderboard: a table for programs, Markdown, and lines for a terminal."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.bench.arms import by_chance
from clipmill.pipeline.bench.board import Board, Line
from clipmill.pipeline.bench.spec import RAW
from clipmill.pipeline.ledger.proof.compare import Comparison
from clipmill.pipeline.run_folder.words import duration
from clipmill.pipeline.terminal import aligned

MINUS = "\N{MINUS SIGN}"
SCORES = "scores.csv"  # each model's score, in the bench's folder


def table(board: Board) -> pa.Table:
    """Returns a row per arm and metric (headline and tasks); shares, not points."""
    rows = []
    for line in board.lines:
        for metric in board.results.shown:
            cell = next(cell for cell in metric.cells if cell.arm == line.arm)
            against = dict(zip(board.results.baselines, cell.against, strict=True))
            raw, random = against.get("raw"), against.get(line.chance)
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
                    **_interval("share_", cell.share),
                    **_apart("raw", raw),
                    **_apart("random", random),
                    "near_chance": cell.near_chance,
                    "leaks": line.leaks.get(metric.task),
                    "seconds": line.seconds,
                    "samples_per_s": line.samples_per_s,
                    "warnings": "; ".join(line.warnings),
                }
            )
    return pa.Table.from_pylist(rows, SCHEMA)


def scores(board: Board) -> pa.Table:
    """Returns a row per model and metric, from which every mean and interval is computed."""
    rows = [
        {"arm": cell.arm, "seed": seed, "task": row.task, "metric": row.metric, "value": value}
        for row in filter(None, (board.results.headline, *board.results.rows))
        for cell in row.cells
        for seed, value in cell.by_seed
    ]
    return pa.Table.from_pylist(rows)


APART = ("minus_{}", "minus_{}_low", "minus_{}_high", "level_{}")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("arm", "what", "settings")),
        *(("rows", pa.int64()), ("epochs", pa.float64()), ("seeds", pa.int32())),
        *((name, pa.string()) for name in ("task", "metric")),
        *((name, pa.float64()) for name in ("chance", "smallest_visible", "value", "low", "high")),
        *((name, pa.float64()) for name in ("share_value", "share_low", "share_high")),
        *((name.format("raw"), pa.float64()) for name in APART),
        ("verdict_raw", pa.string()),
        *((name.format("random"), pa.float64()) for name in APART),
        ("verdict_random", pa.string()),
        *(("near_chance", pa.bool_()), ("leaks", pa.int64())),
        *((name, pa.float64()) for name in ("seconds", "samples_per_s")),
        ("warnings", pa.string()),
    ]
)


def _interval(prefix: str, result: Estimate | None) -> dict[str, float | None]:
    names = ("value", "low", "high")
    return {f"{prefix}{name}": getattr(result, name) if result else None for name in names}


def _apart(name: str, comparison: Comparison | None) -> dict[str, float | str | None]:
    values = (
        (comparison.apart.value, comparison.apart.low, comparison.apart.high, comparison.level)
        if comparison
        else (None,) * 4
    )
    named = zip((column.format(name) for column in APART), values, strict=True)
    return {**dict(named), f"verdict_{name}": comparison.verdict if comparison else None}


def markdown(board: Board) -> str:
    """Returns a page of tables, the best arm first."""
    lines: list[str] = [
        f"# {len(board.lines)} arms at scale {board.scale}",
        "",
        legend(board),
        "",
        *_grid(
            [
                *("arm", "rows", "epochs", board.title, f"{MINUS} raw", ""),
                *(f"{MINUS} random", "", *of_oracle(board)),
            ]
        ),
    ]
    for line in board.lines:
        both = (line.raw, line.random)
        against = [word for compared in both for word in (_points(compared), verdict(compared))]
        cells = [line.arm, f"{line.rows:,}", epochs(line), estimate(line.result), *against]
        cells += [share(line) for _ in of_oracle(board)]
        lines.append(f"| {' | '.join(cells)} |")
    head = ["task", "metric", "chance", "smallest visible"]
    lines += ["", *_grid([*head, *(line.arm for line in board.lines)])]
    for row in board.results.tasks:
        of_arm = {cell.arm: estimate(cell.result) for cell in row.cells}
        values = [of_arm[line.arm] for line in board.lines]
        facts = [row.task, row.metric, _share(row.chance), _share(row.visible)]
        lines.append(f"| {' | '.join([*facts, *values])} |")
    if courses := course(board):
        lines += ["", *_grid(courses[0]), *(f"| {' | '.join(cells)} |" for cells in courses[1:])]
    said = [*verdicts(board), *filter(None, [board.learnt]), *warnings(board)]
    notes = [f"- {words}" for words in said]
    notes.append(f"- each model's score: [{SCORES}]({SCORES})")
    return "\n".join([*lines, "", *notes]) + "\n"


def legend(board: Board) -> str:
    """Returns the legend: the ranking, the intervals, and the smallest visible difference."""
    seeds = sorted({line.seeds for line in board.lines})
    top = board.results.shown[0]
    fine = ", ".join(f"{task} {metric}" for task, metric in board.results.fine.items())
    parts = [
        f"Ranked by the {board.title}" + (f" ({fine})" if fine else ""),
        f"{board.samples_seen:,} samples seen by each model, seeds an arm:"
        f" {' to '.join(map(str, seeds[:1] + seeds[1:][-1:]))}",
        "points of 100",
    ]
    if any(line.result and line.result.high is not None for line in board.lines):
        parts[-1] += ", with half of a 95 % interval that holds the noise of seeds and of items"
    visible = top.visible
    if visible is not None:
        parts.append(f"the smallest difference it could have seen: {100 * visible:.1f}")
    return "; ".join(parts) + "."


def text(board: Board) -> str:
    """Returns the leaderboard for a terminal, with every verdict."""
    head = ["arm", "rows", "epochs", board.title, f"{MINUS} raw", f"{MINUS} random"]
    head += [*of_oracle(board), "a training"]
    lines = [head]
    for line in board.lines:
        cost = duration(line.seconds) if line.seconds is not None else ""
        lines.append(
            [
                *(line.arm, f"{line.rows:,}", epochs(line), estimate(line.result)),
                *(_points(line.raw), _points(line.random)),
                *(share(line) for _ in of_oracle(board)),
                cost,
            ]
        )
    shown = aligned(lines, range(1, len(head)))
    verdict_lines, warned = verdicts(board), warnings(board)
    leaks = _grouped((leaked(line), line.arm) for line in board.lines if line.leaks)
    courses = course(board)
    by = by_task(board)
    grown = aligned(courses, range(1, len(courses[0]))) if courses else []
    parts = [
        shown,
        [*aligned(by, range(1, len(by[0]))), board.learnt] if by else [],
        grown,
        verdict_lines,
        warned,
        leaks and ["copies of the tasks' samples:", *leaks],
    ]
    return "\n\n".join("\n".join(part) for part in [*parts, [legend(board)]] if part)


def by_task(board: Board) -> list[list[str]]:
    """Returns a head, then the score in each task of the arms that split a column; else nothing."""
    rows = board.results.shown
    heads = [f"{row.task} {row.metric}".strip() for row in rows]
    scored = [{cell.arm: estimate(cell.result) for cell in row.cells} for row in rows]
    lines = [[arm, *(score.get(arm, "") for score in scored)] for arm in board.by]
    return [["arm", *heads], *lines] if lines else []


def course(board: Board) -> list[list[str]]:
    """Returns a head, then for each arm the board's metric by samples seen, and the samples after
    which it has raw's last score; empty without snapshots."""
    curves = {curve.arm: curve for curve in board.curves}
    if RAW not in curves:
        return []
    samples = [f"{share * board.samples_seen:,.0f} seen" for share in curves[RAW].share]
    rows = [["arm", *samples, "raw's last score after"]]
    for name in (line.arm for line in board.lines if line.arm in curves):
        values = dict(zip(curves[name].share, curves[name].result, strict=True))
        reached = curves[name].reaching(curves[RAW].result[-1].value)
        after = "never" if reached is None else f"{reached * board.samples_seen:,.0f}"
        first = "up to " if reached == curves[name].share[0] else ""
        shown = [estimate(values.get(share)) for share in curves[RAW].share]
        rows.append([name, *shown, f"{first}{after}"])
    return rows


def verdicts(board: Board) -> list[str]:
    """Returns a sentence per significant difference, then the arms without one, grouped."""
    comparisons = [
        (line.arm, comparison)
        for line in board.lines
        for comparison in (line.raw, line.random)
        if comparison
    ]
    words = [
        comparison.words
        for _, comparison in comparisons
        if comparison.verdict in ("better", "worse")
    ]
    same = []
    for arm, comparison in comparisons:
        if comparison.verdict not in ("better", "worse"):
            whom = "raw" if comparison.baseline == "raw" else by_chance(comparison.baseline)
            link = " to" if comparison.verdict == "none" else ", against"
            same.append((f"{comparison.words}{link} {whom}", arm))
    return [*words, *_grouped(same)]


def warnings(board: Board) -> list[str]:
    """Returns each warning with its arms."""
    return _grouped((words, line.arm) for line in board.lines for words in line.warnings)


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Returns each sentence once, with its arms."""
    arms_of: dict[str, list[str]] = {}
    for words, arm in pairs:
        arms_of.setdefault(words, []).append(arm)
    return [f"{words}: {', '.join(arms)}" for words, arms in arms_of.items()]


def estimate(result: Estimate | None) -> str:
    """Returns `11.0 ± 0.4`; without an interval only the value."""
    if result is None:
        return ""
    half = f" ± {100 * (result.high - result.value):.1f}" if result.high is not None else ""
    return f"{100 * result.value:.1f}{half}"


def of_oracle(board: Board) -> list[str]:
    """Returns the title of the shares' column, if any arm has one."""
    return ["way from raw to oracle"] if any(line.share for line in board.lines) else []


def share(line: Line) -> str:
    """Returns `61 % (40 to 85)` of the way from raw to the oracle."""
    if line.share is None or line.share.low is None or line.share.high is None:
        return ""
    ends = line.share.value, line.share.low, line.share.high
    value, low, high = (round(100 * end) for end in ends)  # whole numbers: never -0
    return f"{value} % ({low} to {high})".replace("-", MINUS)


def epochs(line: Line) -> str:
    """Returns how often a training saw each row."""
    return "" if line.epochs is None else f"{line.epochs:.1f}"


def verdict(comparison: Comparison | None) -> str:
    """Returns the verdict in a word or two."""
    words = {"none": "no difference", "unclaimed": "not claimed"}
    return words.get(comparison.verdict, comparison.verdict) if comparison else ""


def leaked(line: Line) -> str:
    """Returns the evaluation samples in the arm's rows, by task."""
    return ", ".join(f"{count:,} of {task}" for task, count in sorted(line.leaks.items()))


def _points(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    half = f" ± {100 * comparison.half:.1f}" if comparison.half is not None else ""
    points = round(100 * comparison.apart.value, 1) + 0.0  # never -0.0
    return f"{points:+.1f}{half}".replace("-", MINUS)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _grid(head: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
