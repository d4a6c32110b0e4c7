"""The leaderboard as text: the way to the oracle, each model's score, whose chance it is."""

import re

import pytest

from clipmill.metadata.stats import Estimate
from clipmill.pipeline.bench import estimate
from clipmill.pipeline.bench.board import Board, Line
from clipmill.pipeline.bench.tables import (
    course,
    markdown,
    scores,
    share,
    table,
    text,
    verdicts,
    warnings,
)
from clipmill.pipeline.ledger.proof.compare import Comparison
from clipmill.pipeline.ledger.proof.curves import Curve
from clipmill.pipeline.ledger.proof.results import Cell, MetricRow, Results
from clipmill.pipeline.report.leaderboard import leaderboard

CHANCE = "random_of_9_in_rules"
WAY = Estimate(0.61, -0.04, 0.85)


def cell(arm: str, *values: float, **facts) -> Cell:
    empty = {"against": (None, None), "share": None, "near_chance": False}
    mean = Estimate(sum(values) / len(values))
    by_seed = tuple(enumerate(values))
    return Cell(arm=arm, seeds=len(values), by_seed=by_seed, result=mean, **{**empty, **facts})


def line(arm: str, **facts) -> Line:
    empty = dict.fromkeys(
        ("result", "share", "raw", "random", "seconds", "samples_per_s", "epochs")
    )
    known = {"what": "", "settings": {}, "rows": 9, "chance": CHANCE, "seeds": 2, "leaks": {}}
    known |= {"near_chance": False, "warnings": ()}
    return Line(arm=arm, **{**empty, **known, **facts})


def board() -> Board:
    """An arm between raw and the oracle on one task, told from chance of its parent."""
    parted = Comparison(
        arm="best", baseline=CHANCE, seeds=(2, 2), apart=Estimate(0.1, -0.1, 0.3), level=0.4
    )
    cells = cell("best", 0.2, 0.3, share=WAY, against=(None, parted)), cell("raw", 0.1)
    row = MetricRow(task="flags", metric="acc5", chance=0.05, cells=cells)
    results = Results(
        arms=("best", "raw"),
        baselines=("raw", CHANCE),
        epochs={},
        fine={"flags": "acc5"},
        headline=MetricRow(task="mean", metric="", chance=None, cells=cells[:1]),
        tasks=(row,),
        rows=(row,),
    )
    lines = line("best", share=WAY, random=parted), line("raw")
    return Board(scale="nano", samples_seen=9, lines=lines, results=results)


def test_the_way_to_the_oracle_stands_in_every_form():
    page = board()
    assert [share(line) for line in page.lines] == ["61 % (\N{MINUS SIGN}4 to 85)", ""]
    for said in (markdown(page), text(page)):
        assert "way from raw to oracle" in said
        assert share(page.lines[0]) in said
    first = table(Board(**{**vars(page), "lines": page.lines[:1]})).to_pylist()[0]
    assert (first["share_value"], first["share_low"], first["share_high"]) == (0.61, -0.04, 0.85)


def test_without_an_oracle_no_column_is_left_empty():
    page = Board(**{**vars(board()), "lines": (line("best"), line("raw"))})
    assert "oracle" not in markdown(page) + text(page)


def test_every_models_score_of_every_metric_stands_in_the_file_that_the_page_links():
    rows = scores(board()).to_pylist()
    found = [(row["arm"], row["seed"], row["task"], row["value"]) for row in rows]
    mean = [("best", 0, "mean", 0.2), ("best", 1, "mean", 0.3)]
    flags = [("best", 0, "flags", 0.2), ("best", 1, "flags", 0.3), ("raw", 0, "flags", 0.1)]
    assert found == mean + flags
    assert "[scores.csv](scores.csv)" in markdown(board())


def test_the_course_says_after_how_many_samples_each_arm_has_raws_last_score():
    points = {"best": (0.1, 0.2, 0.4), "raw": (0.05, 0.1, 0.12), "random": (0.12, 0.13, 0.11)}
    grown = tuple(
        Curve(
            arm=arm, share=(0.25, 0.5, 1), result=tuple(Estimate(v, v - 0.01, v + 0.01) for v in of)
        )
        for arm, of in points.items()
    )
    lines = (*board().lines, line("random"), line("without"))
    page = Board(**{**vars(board()), "lines": lines, "curves": grown, "samples_seen": 1_000})
    head, *rows = course(page)
    assert head == ["arm", "250 seen", "500 seen", "1,000 seen", "raw's last score after"]
    after = {cells[0]: cells[-1] for cells in rows}
    assert after == {"best": "300", "raw": "1,000", "random": "up to 250"}
    assert rows[0] == ["best", "10.0 ± 1.0", "20.0 ± 1.0", "40.0 ± 1.0", "300"]
    page = Board(**{**vars(page), "lines": board().lines})
    for said in (markdown(page), text(page)):
        assert "raw's last score after" in said
    html = leaderboard(page, "a bench")
    assert "Score by samples seen of best, raw" in html
    assert html.count("<polygon") == 2
    worse = (Curve(arm="best", share=(0.5, 1.0), result=(Estimate(0.1), Estimate(0.11))), grown[1])
    below = Board(**{**vars(page), "curves": worse})
    assert course(below)[1] == ["best", "", "10.0", "11.0", "never"]
    assert course(board()) == []
    assert "samples seen of" not in leaderboard(board(), "a bench")


def test_no_interval_is_drawn_beyond_0_and_100_or_claimed_without_one():
    points = Estimate(0.2, -0.9, 1.4), Estimate(0.3, 0.2, 0.4)
    curve = Curve(arm="raw", share=(0.5, 1), result=points)
    page = Board(**{**vars(board()), "curves": (curve,)})
    html = leaderboard(page, "a bench")
    assert html.count("with 95 % intervals") == 1
    (corners,) = re.findall('polygon .*points="(.*?) "', html)
    assert {float(point.split(",")[1]) for point in corners.split()} >= {16.0, 156.0}  # 100, 0
    one = Curve(arm="raw", share=(0.5, 1), result=(Estimate(0.2), Estimate(0.3)))
    page = Board(**{**vars(board()), "curves": (one,)})
    assert "95 %" not in leaderboard(page, "a bench") + markdown(page)


def test_a_difference_that_rounds_to_none_has_one_sign_in_every_form():
    apart = Comparison(arm="best", baseline="raw", seeds=(2, 2), apart=Estimate(-0.0001))
    least = Estimate(-0.002, -0.004, 0.5)
    page = Board(**{**vars(board()), "lines": (line("best", raw=apart, share=least), line("raw"))})
    for said in (markdown(page), text(page), leaderboard(page, "a bench")):
        assert "+0.0" in said
        assert "\N{MINUS SIGN}0" not in said


def test_chance_is_named_by_the_arm_that_it_is_drawn_from():
    assert verdicts(board()) == ["no difference to as many rows of rules by chance: best"]


@pytest.mark.parametrize(
    ("workers", "seconds"), [(None, 300), (0, 300), (2, 200), (3, 100), (9, 100)]
)
def test_the_last_of_the_trainings_takes_as_long_as_one_however_few_are_left(workers, seconds):
    cost = estimate.Estimate(
        trainings=3, training_s=90, evaluation_s=10, workers=workers, is_measured=True
    )
    assert cost.seconds == seconds


def test_a_bench_by_a_column_has_a_table_of_its_arms_by_task_and_what_was_learnt():
    page = Board(**{**vars(board()), "by": ("best",), "learnt": "weights learnt: all"})
    said = text(page)
    assert ["best", "25.0", "25.0"] in [line.split() for line in said.splitlines()]
    for form in (said, markdown(page), leaderboard(page, "a bench")):
        assert "weights learnt: all" in form


def test_arms_of_equal_leaks_and_warnings_share_a_line():
    leaky = {"leaks": {"flags": 8}, "warnings": ("one seed",)}
    page = Board(**{**vars(board()), "lines": (line("best", **leaky), line("raw", **leaky))})
    assert "8 of flags: best, raw" in text(page)
    assert warnings(page) == ["one seed: best, raw"]
