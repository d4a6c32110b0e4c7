"""Writes a run as one self-contained HTML page (`clipmill report`).

Every figure and picture is read from the run folder, so the same folder gives the same bytes.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import yaml

from clipmill.pipeline.ledger.findings.balances import balances
from clipmill.pipeline.ledger.findings.clusters import cluster_maps
from clipmill.pipeline.ledger.findings.duplicates import duplicates
from clipmill.pipeline.ledger.findings.leaks import leaks
from clipmill.pipeline.ledger.findings.notes import notes
from clipmill.pipeline.ledger.findings.planted import last_planted
from clipmill.pipeline.ledger.proof.results import Results, losses, results
from clipmill.pipeline.ledger.rows.captions import captions
from clipmill.pipeline.ledger.selection.funnel import Funnel, funnel
from clipmill.pipeline.ledger.summary import endings
from clipmill.pipeline.ledger.work import StageWork, work
from clipmill.pipeline.report.balances import balance_section
from clipmill.pipeline.report.captions import caption_section
from clipmill.pipeline.report.clusters import cluster_section
from clipmill.pipeline.report.ends import Section, drawn_end, section, sections_of
from clipmill.pipeline.report.page import render
from clipmill.pipeline.report.strips import duplicate_strips, leak_strips
from clipmill.pipeline.report.training import training_charts
from clipmill.pipeline.run_folder.ran import newest_recipe
from clipmill.pipeline.run_folder.sessions import sessions
from clipmill.pipeline.run_folder.state import RunState
from clipmill.pipeline.run_folder.variants import variant as variant_of

LONG_PATH = re.compile(r"=(/|\w+://)\S*/(?=[^/\s]+$)")  # shortens a path to its last part


def report(state: RunState, baselines: Sequence[str] = (), variant: int | None = None) -> str:
    """Returns the page as HTML; `variant` is the recipe's number, None for the last one."""
    rows, worth, costs = funnel(state), results(state, baselines), work(state)
    ends = [drawn_end(end, number) for number, end in enumerate(rows.ends)]
    return render(
        "report.html",
        title=state.plan.recipe.name,
        run=_run(state, variant),
        funnel=rows,
        ends=ends,
        endings=() if rows.ends else endings(state),
        results=worth,
        work=costs,
        sections=list(_sections(state, rows, ends, worth, costs)),
    )


def _sections(
    state: RunState,
    rows: Funnel,
    ends: list[dict[str, Any]],
    worth: Results | None,
    costs: list[StageWork],
) -> Iterator[Section]:
    """Yields the parts of the page in order, without empty ones."""
    if worth:
        yield section("results", "Results")
    if rows.stages:
        yield section("rows", "Where the rows went")
    for number, end in enumerate(ends):
        yield from sections_of(state, end, number, f" of {end['stage']}" if len(ends) > 1 else "")
    if same := duplicates(state):
        strips = [{**vars(stage), "strips": duplicate_strips(state, stage)} for stage in same]
        yield section("duplicates", "Duplicates", duplicates=strips)
    if near := leaks(state):
        strips = [{**vars(stage), "strips": leak_strips(state, stage)} for stage in near]
        yield section("leaks", "Copies of evaluation samples", leaks=strips)
    for number, texts in enumerate(captions(state)):
        values = caption_section(state, texts)
        title = f"Captions of {texts.chosen_by or texts.stage}"
        yield section("captions", title, number, found=values)
    for number, balance in enumerate(balances(state)):
        values = balance_section(state, balance)
        yield section("concepts", f"Concepts balanced by {balance.stage}", number, found=values)
    for number, cluster_map in enumerate(cluster_maps(state)):
        drawn = cluster_section(state, cluster_map)
        title = f"Concept map of {cluster_map.stage}"
        yield section("clusters", title, number, found=drawn, is_first=number == 0)
    if truth := last_planted(state):
        yield section("truth", "Against the planted truth", truth=truth)
    charts, sentences = training_charts(losses(state)), notes(state)
    if charts or sentences:
        yield section("training", "Training", charts=charts, notes=sentences)
    yield section("time", "Time and throughput")
    if rows.exports:
        yield section("exports", "Exports")
    yield section("recipe", "Recipe and machine")


def _run(state: RunState, variant: int | None) -> dict[str, Any]:
    """Returns the facts of the run: recipe, seed, start, and its stages as YAML."""
    if variant is None:
        name, ran = newest_recipe(state.run)
    else:
        chosen = variant_of(state.run, variant)
        name, ran = chosen.file, chosen.ran
    began = datetime.strptime(name[:15], "%Y%m%dT%H%M%S")
    ended = sessions(state.run)
    return {
        "folder": str(state.run),
        "recipe": state.plan.recipe.name,
        "variant": variant,
        "seed": state.plan.seed,
        "began": began.strftime("%Y-%m-%d %H:%M UTC"),
        "overrides": [LONG_PATH.sub("=…/", override) for override in ran["overrides"]],
        "sessions": ended,
        "seconds": sum(session.seconds for session in ended),
        "stages": yaml.safe_dump(
            ran["stages"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        ),
    }
