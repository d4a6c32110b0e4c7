"""clipmill in Python: plan a recipe, run it, and ask what came out.

    import clipmill

    run = clipmill.run("smoke", out="run", pool={"path": "pool/metadata"})
    run.funnel()
    run.table("subset", ["url", "text", "caption_words"]).collect()

Settings of a stage are a dict under its name; `sets={"pool.path": …}` says the same of any key.
`clipmill.curate("photos", out="run")` makes a training set of data of your own. Errors are
`clipmill.RecipeError` and `clipmill.StageError`. docs/python.md has the rest. Nothing is imported
before it is used.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.pipeline.errors import ClipmillError, RecipeError, StageError
    from clipmill.pipeline.notebook.answers import Plan
    from clipmill.pipeline.notebook.run import Run
    from clipmill.pipeline.planning.given import Given

__version__ = "0.1.0"
__all__ = ["ClipmillError", "RecipeError", "StageError", "curate", "init", "open", "plan", "run"]
# `clipmill.verify("run")` is `clipmill.open("run").verify()`, as the verbs have it.
OF_A_RUN = ("diff", "export", "report", "retry", "show", "variants", "verify")


def __getattr__(name: str) -> Any:
    if name in ("ClipmillError", "RecipeError", "StageError"):
        from clipmill.pipeline import errors

        return getattr(errors, name)
    if name in OF_A_RUN:
        return lambda run, *args, **kwargs: getattr(open(run), name)(*args, **kwargs)
    raise AttributeError(f"module 'clipmill' has no attribute '{name}'")


def init(data: str, **options: Any) -> str:
    """A starter recipe for data of your own, as YAML text to read, change and `run`.

    The options are those of `clipmill init`: caption="title", keep=0.3, score="similarity",
    to=["webdataset"]. RecipeError says what else it must know.
    """
    from clipmill.pipeline.notebook.own_data import recipe_of

    return recipe_of(data, options)


def curate(
    data: str,
    out: str,
    *,
    workers: int | None = None,
    sets: Mapping[str, Any] | None = None,
    **options: Any,
) -> "Run":
    """The finished run of data of your own, with its report beside it, OUT.html (here if remote).

    The options are those of `init`; `sets={"images.allow_private_addresses": True}` changes a key.
    """
    from clipmill.pipeline.verbs._options import beside

    finished = run(init(data, **options), out, workers=workers, sets=sets)
    finished.report(beside(str(out), ".html"))
    return finished


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
    from clipmill.pipeline.notebook.run import Run
    from clipmill.pipeline.notebook.start import started

    whole = _plan(recipe, seed, until, sets, stages)
    state = started(whole, str(out), workers, executor, address, retry, keep_going)
    return Run(str(out), state=state)


def open(uri: str, variant: int | None = None) -> "Run":
    """The run in a folder, a path or s3://…, through the recipe that ran there last, or another by
    its number in `clipmill diff`."""
    from clipmill.pipeline.extras import hide_pandas, importing

    with importing():
        hide_pandas()
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
