"""clipmill in Python: plan a recipe, run it, and ask what came out.

    import clipmill

    run = clipmill.run("smoke", out="run", pool={"path": "pool/metadata"})
    run.funnel()
    run.table("subset", ["url", "text", "caption_words"]).collect()

Settings of a stage are a dict under its name; `sets={"pool.path": …}` says the same of any key.
docs/python.md has the rest. Nothing is imported before it is used.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.pipeline.notebook.answers import Plan
    from clipmill.pipeline.notebook.run import Run
    from clipmill.pipeline.planning.given import Given

__version__ = "0.1.0"
__all__ = ["open", "plan", "run"]


def plan(
    recipe: "Given",
    *,
    seed: int | None = None,
    until: str | None = None,
    sets: Mapping[str, Any] | None = None,
    **stages: Mapping[str, Any],
) -> "Plan":
    """The stages of a recipe, checked, and what they read looked at; nothing runs.

    `recipe` is a name of `clipmill recipes`, a path, YAML text, or a dict. RecipeError says what is
    wrong.
    """
    from clipmill.pipeline.notebook.answers import Plan, shown
    from clipmill.pipeline.notebook.start import checked

    return shown(Plan, checked(_plan(recipe, seed, until, sets, stages)))


def run(
    recipe: "Given",
    out: str,
    *,
    workers: int | None = None,
    executor: str = "local",
    address: str | None = None,
    retry: Sequence[str] = (),
    keep_going: bool = False,
    seed: int | None = None,
    until: str | None = None,
    sets: Mapping[str, Any] | None = None,
    **stages: Mapping[str, Any],
) -> "Run":
    """The finished run of a recipe in the folder `out`, a path or s3://…; it goes on where it was.

    The arguments are those of `clipmill run`; `workers=0` is all in this process. StageError where
    a stage stopped: finished shards are kept.
    """
    from clipmill.pipeline.notebook.start import started

    whole = _plan(recipe, seed, until, sets, stages)
    return started(whole, str(out), workers, executor, address, retry, keep_going)


def open(uri: str, variant: int | None = None) -> "Run":
    """The run in a folder, a path or s3://…, through the recipe that ran there last, or another by
    its number in `clipmill diff`."""
    from clipmill.pipeline.notebook.run import Run

    return Run(str(uri), variant)


def _plan(
    recipe: "Given",
    seed: int | None,
    until: str | None,
    sets: Mapping[str, Any] | None,
    stages: Mapping[str, Any],
) -> Any:
    from clipmill.pipeline.planning.given import recipe_given
    from clipmill.pipeline.planning.plan import make_plan

    return make_plan(recipe_given(recipe, seed, sets, stages), until)
