"""Finds and checks the edges of a recipe: the stages that a stage names as inputs."""

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.bindings import Draft
from clipmill.pipeline.planning.elsewhere import uri_in
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.stage import RowStage, Stage, edges_taken

KEYS = {  # edges that may be required: key, what it brings, how to write it
    "rows": ("from", "rows", "`from: <stage>`"),
    "data": ("data", "a dataset", '`data: <export stage>`, or `data: "export:<URI>"`'),
}
ELSEWHERE = 'write data: "export:PATH", the folder of an export that another run made'
FOLDERS = {  # settings that may be `stage:NAME` -> what that stage must give
    "model": "model",
    "start": "model",
    "centroids": "centroids",
    "targets": "data",
}


def edges_of(recipe: Recipe, name: str, stage: Stage) -> dict[str, list[str]]:
    """Returns the stages that a stage names, by key, without exports of other runs."""
    keys = recipe.stages[name]
    rows = keys.get("from", [])
    rows = rows if isinstance(rows, list) else [rows]
    edges = {
        "from": rows,
        "data": [keys["data"]] if "data" in keys and uri_in(keys) is None else [],
        "rows": [keys["rows"]] if "rows" in keys and "data" in edges_taken(stage) else [],
        "only": [keys["only"]] if "only" in keys else [],
    }
    for edge in FOLDERS:
        setting = keys.get(edge)
        is_stage = isinstance(setting, str) and setting.startswith("stage:")
        edges[edge] = [str(setting).removeprefix("stage:")] if is_stage else []
    for edge, targets in edges.items():
        for target in targets:
            if not isinstance(target, str) or target not in recipe.stages:
                raise RecipeError(
                    found=f"no stage '{target}'",
                    where=recipe.where(name, edge),
                    do=did_you_mean(str(target), recipe.stages, "the recipe has"),
                )
    return edges


def check_edges(draft: Draft, name: str, stage: Stage, edges: dict[str, list[str]]) -> None:
    """Raises RecipeError if an edge is missing, or brings what the stage does not take."""
    recipe, planned = draft.recipe, draft.planned
    uses, elsewhere = recipe.stages[name]["uses"], uri_in(recipe.stages[name])
    taken = edges_taken(stage)
    if elsewhere == "":
        raise RecipeError("`data` names no folder", recipe.where(name, "data"), ELSEWHERE)
    kinds = {"from": "rows", "data": "data", "rows": "rows", "only": "rows"}
    for edge, kind in (kinds | FOLDERS).items():
        for target in edges[edge]:
            gives = planned[target].stage.gives
            if kind not in gives:
                fits = {"rows": "from", "data": "data"}
                fits |= {edge: f'{edge}: "stage:…"' for edge in ("model", "centroids")}
                other = f", or use `{fits[gives[0]]}`" if gives else ""
                whole = " and ".join(gives) or "nothing"
                raise RecipeError(
                    found=f"'{target}' gives {whole}, and `{edge}` takes {kind}",
                    where=recipe.where(name, edge),
                    do=f"name a stage that gives {kind}{other}",
                )
        brought = edge if edge in FOLDERS else kind  # as `takes` calls the edge
        is_given = bool(edges[edge]) or (edge == "data" and elsewhere is not None)
        if edge in ("from", "data", *FOLDERS) and is_given and brought not in taken:
            raise RecipeError(
                found=f"{uses} takes no `{edge}`",
                where=recipe.where(name, edge),
                do=f"it takes: {', '.join(taken) or 'nothing; it is a root'}",
            )
    for takes in stage.takes:
        choices = takes if isinstance(takes, tuple) else (takes,)
        keys = [KEYS[kind] for kind in choices if kind in KEYS]
        present = [key for key, *_ in keys if edges[key] or (key == "data" and elsewhere)]
        if keys and not present:
            where = recipe.where(name)
            do = f"write {' or '.join(do for *_, do in keys)}"
            raise RecipeError(f"{uses} needs {' or '.join(what for _, what, _ in keys)}", where, do)
        if len(present) > 1:
            found = f"{uses} takes `{'` or `'.join(present)}`, and both are given"
            raise RecipeError(found, recipe.where(name, present[-1]), "leave one of them out")
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
            if "data" in taken
            else "put `only` on the row stages before it",
        )
    if edges["rows"] and "subset" in recipe.stages[name]:
        found = "`rows` and `subset` both say which rows of `data` are read"
        raise RecipeError(found, recipe.where(name, "subset"), "leave one of them out")
    for select in edges["rows"]:
        if elsewhere:
            raise _strange_rows(recipe, name, select)
        if not edges["data"]:
            found = f"`rows` says which rows of `data` are read, and {uses} has none"
            do = f"write `from: {select}`, or name an export as `data`"
            raise RecipeError(found, recipe.where(name, "rows"), do)
        _check_roots(draft, name, planned[select], edges["data"][0])


def _strange_rows(recipe: Recipe, name: str, select: str) -> RecipeError:
    """Returns the error for a select of this run over rows of another run."""
    return RecipeError(
        f"'{select}' selects rows of this run's pool, and the data are another run's export",
        recipe.where(name, "rows"),
        "say which rows by a file, `subset: FILE`, where the stage has that setting; or name an"
        " export stage of this recipe as `data`",
    )


def _check_roots(draft: Draft, name: str, select: PlannedStage, export: str) -> None:
    """Raises RecipeError if a select and an export have different roots."""
    recipe, planned = draft.recipe, draft.planned
    data = planned[export]
    while not data.root and data.data is not None:  # an export of an export
        data = planned[data.data]
    if data.elsewhere is not None:
        raise _strange_rows(recipe, name, select.name)
    if not data.root:
        found = f"'{export}' ({planned[export].uses}) holds no rows of a pool"
        raise RecipeError(found, recipe.where(name, "rows"), "name an export as `data`")
    if select.root != data.root:
        raise RecipeError(
            f"'{select.name}' selects rows of '{select.root}', and '{export}' holds rows of"
            f" '{data.root}'",
            recipe.where(name, "rows"),
            f"name a select stage over '{data.root}', or an export of '{select.root}'",
        )
