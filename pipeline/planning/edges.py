"""The edges of a recipe: which stages a stage names, and whether it takes what they give."""

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.planning.elsewhere import uri_in
from clipmill.pipeline.planning.planned import PlannedStage
from clipmill.pipeline.planning.recipe import Recipe
from clipmill.pipeline.stage import RowStage, Stage, edges_taken

KEYS = {  # of an edge that cannot be left out: its key, what it brings, how it is written
    "rows": ("from", "rows", "`from: <stage>`"),
    "data": ("data", "a dataset", '`data: <export stage>`, or `data: "export:<URI>"`'),
}
ELSEWHERE = 'write data: "export:PATH", the folder of an export that another run made'
FOLDERS = {  # settings that may say `stage:NAME`, and what such a stage gives
    "model": "model",
    "centroids": "centroids",
    "targets": "data",
}


def edges_of(recipe: Recipe, name: str, stage: Stage) -> dict[str, list[str]]:
    """The stages that a stage names, by the key that names them; an export elsewhere is none."""
    keys = recipe.stages[name]
    rows = keys.get("from", [])
    rows = rows if isinstance(rows, list) else [rows]
    edges = {
        "from": rows,
        "data": [keys["data"]] if "data" in keys and uri_in(keys) is None else [],
        "rows": [keys["rows"]] if "rows" in keys and "data" in edges_taken(stage) else [],
        "only": [keys["only"]] if "only" in keys else [],
    }
    edges |= {edge: _stage_named(keys.get(edge)) for edge in FOLDERS}
    for edge, targets in edges.items():
        for target in targets:
            if not isinstance(target, str) or target not in recipe.stages:
                raise RecipeError(
                    found=f"no stage '{target}'",
                    where=recipe.where(name, edge),
                    do=did_you_mean(str(target), recipe.stages, "the recipe has"),
                )
    return edges


def _stage_named(setting: object) -> list[str]:
    """The stage that a setting of the form `stage:NAME` names."""
    is_stage = isinstance(setting, str) and setting.startswith("stage:")
    return [str(setting).removeprefix("stage:")] if is_stage else []


def check_edges(
    recipe: Recipe,
    name: str,
    stage: Stage,
    edges: dict[str, list[str]],
    planned: dict[str, PlannedStage],
) -> None:
    """RecipeError where a stage does not take what an edge brings."""
    uses, elsewhere = recipe.stages[name]["uses"], uri_in(recipe.stages[name])
    taken = edges_taken(stage)
    if elsewhere == "":
        raise RecipeError("`data` names no folder", recipe.where(name, "data"), ELSEWHERE)
    kinds = {"from": "rows", "data": "data", "rows": "rows", "only": "rows"}
    kinds |= FOLDERS
    for edge, kind in kinds.items():
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
        wanted = edge if edge in FOLDERS else kind
        is_given = bool(edges[edge]) or (edge == "data" and elsewhere is not None)
        if edge in ("from", "data", *FOLDERS) and is_given and wanted not in taken:
            raise RecipeError(
                found=f"{uses} takes no `{edge}`",
                where=recipe.where(name, edge),
                do=f"it takes: {', '.join(taken) or 'nothing; it is a root'}",
            )
    for one in stage.takes:
        keys = [KEYS[kind] for kind in (one if isinstance(one, tuple) else (one,)) if kind in KEYS]
        given = [key for key, *_ in keys if edges[key] or (key == "data" and elsewhere)]
        if keys and not given:
            raise RecipeError(
                f"{uses} needs {' or '.join(what for _, what, _ in keys)}",
                recipe.where(name),
                f"write {' or '.join(do for *_, do in keys)}",
            )
        if len(given) > 1:
            raise RecipeError(
                f"{uses} takes `{'` or `'.join(given)}`, and both are given",
                recipe.where(name, given[-1]),
                "leave one of them out",
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
            if "data" in taken
            else "put `only` on the row stages before it",
        )
    if edges["rows"] and "subset" in recipe.stages[name]:
        raise RecipeError(
            "`rows` and `subset` both say which rows of `data` are read",
            recipe.where(name, "subset"),
            "leave one of them out",
        )
    for select in edges["rows"]:
        if elsewhere:
            raise _strange_rows(recipe, name, select)
        if not edges["data"]:
            raise RecipeError(
                f"`rows` says which rows of `data` are read, and {uses} has none",
                recipe.where(name, "rows"),
                f"write `from: {select}`, or name an export as `data`",
            )
        check_roots(recipe, name, planned[select], edges["data"][0], planned)


def _strange_rows(recipe: Recipe, name: str, select: str) -> RecipeError:
    """The error where a select of this run is to choose among another run's rows."""
    return RecipeError(
        f"'{select}' selects rows of this run's pool, and the data are another run's export",
        recipe.where(name, "rows"),
        "say which rows by a file, `subset: FILE`, where the stage has that setting; or name an"
        " export stage of this recipe as `data`",
    )


def check_roots(
    recipe: Recipe, name: str, select: PlannedStage, export: str, planned: dict[str, PlannedStage]
) -> None:
    """RecipeError where a select decides on other rows than those in the data."""
    data = planned[export]
    while not data.root and data.data is not None:  # an export of an export
        data = planned[data.data]
    if data.elsewhere is not None:
        raise _strange_rows(recipe, name, select.name)
    if not data.root:
        raise RecipeError(
            f"'{export}' ({planned[export].uses}) holds no rows of a pool",
            recipe.where(name, "rows"),
            "name an export as `data`",
        )
    if select.root != data.root:
        raise RecipeError(
            f"'{select.name}' selects rows of '{select.root}', and '{export}' holds rows of"
            f" '{data.root}'",
            recipe.where(name, "rows"),
            f"name a select stage over '{data.root}', or an export of '{select.root}'",
        )
