"""The edges of a recipe: which stages a stage names, and whether it takes what they give."""

from pipeline.errors import RecipeError
from pipeline.planned import PlannedStage
from pipeline.recipe import Recipe, nearest
from pipeline.stage import RowStage, Stage


def edges_of(recipe: Recipe, name: str, stage: Stage) -> dict[str, list[str]]:
    """The stages that a stage names, by the key that names them."""
    keys = recipe.stages[name]
    rows = keys.get("from", [])
    rows = rows if isinstance(rows, list) else [rows]
    model = keys.get("model")
    edges = {
        "from": rows,
        "data": [keys["data"]] if "data" in keys else [],
        "rows": [keys["rows"]] if "rows" in keys and "data" in stage.takes else [],
        "only": [keys["only"]] if "only" in keys else [],
        "model": [model.removeprefix("stage:")]
        if isinstance(model, str) and model.startswith("stage:")
        else [],
    }
    for edge, targets in edges.items():
        for target in targets:
            if not isinstance(target, str) or target not in recipe.stages:
                raise RecipeError(
                    found=f"no stage '{target}'",
                    where=recipe.where(name, edge),
                    do=f"did you mean '{nearest(str(target), recipe.stages)}'?"
                    f"  Stages: {', '.join(recipe.stages)}",
                )
    return edges


def check_edges(
    recipe: Recipe,
    name: str,
    stage: Stage,
    edges: dict[str, list[str]],
    planned: dict[str, PlannedStage],
) -> None:
    """RecipeError where a stage does not take what an edge brings."""
    uses = recipe.stages[name]["uses"]
    kinds = {"from": "rows", "data": "data", "rows": "rows", "model": "model", "only": "rows"}
    for edge, kind in kinds.items():
        for target in edges[edge]:
            gives = planned[target].stage.gives
            if kind not in gives:
                fits = {"rows": "from", "data": "data", "model": 'model: "stage:…"'}
                raise RecipeError(
                    found=f"'{target}' gives {' and '.join(gives)}, and `{edge}` takes {kind}",
                    where=recipe.where(name, edge),
                    do=f"name a stage that gives {kind}, or use `{fits[gives[0]]}`",
                )
        if edge in ("from", "data", "model") and edges[edge] and kind not in stage.takes:
            raise RecipeError(
                found=f"{uses} takes no `{edge}`",
                where=recipe.where(name, edge),
                do=f"it takes: {', '.join(stage.takes) or 'nothing; it is a root'}",
            )
    if "rows" in stage.takes and not edges["from"]:
        raise RecipeError(f"{uses} needs rows", recipe.where(name), "write `from: <stage>`")
    if "data" in stage.takes and not edges["data"]:
        raise RecipeError(
            f"{uses} needs a dataset",
            recipe.where(name),
            "write `data: <export stage>`",
        )
    for edge in ("only", "rows"):
        for target in edges[edge]:
            if not planned[target].is_select:
                raise RecipeError(
                    f"'{target}' writes no `keep`", recipe.where(name, edge), "name a select stage"
                )
    if edges["only"] and not isinstance(stage, RowStage):
        raise RecipeError(
            f"{uses} sees the whole pool at once and takes no `only`",
            recipe.where(name, "only"),
            f"write `rows: {edges['only'][0]}`"
            if "data" in stage.takes
            else "put `only` on the row stages before it",
        )
    for select in edges["rows"]:
        check_roots(recipe, name, planned[select], planned[edges["data"][0]])


def check_roots(recipe: Recipe, name: str, select: PlannedStage, data: PlannedStage) -> None:
    """RecipeError where a select decides on other rows than those in the data."""
    if data.root is None:
        raise RecipeError(
            f"'{data.name}' ({data.uses}) holds no rows of a pool",
            recipe.where(name, "rows"),
            "name an export as `data`",
        )
    if select.root != data.root:
        raise RecipeError(
            f"'{select.name}' selects rows of '{select.root}', and '{data.name}' holds rows of"
            f" '{data.root}'",
            recipe.where(name, "rows"),
            f"name a select stage over '{data.root}', or an export of '{select.root}'",
        )
