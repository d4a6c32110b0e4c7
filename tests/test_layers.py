"""Who may import whom, read from the source: DESIGN.md's table.

python -m tests.test_layers     lists the files past 300 lines
"""

import ast
import functools
import sys
from pathlib import Path

import pytest

from clipmill.pipeline.planning.settings import known_uses

SOURCE = Path(__file__).parents[1] / "clipmill"
FILES = sorted(
    path.relative_to(SOURCE).as_posix()
    for layer in ("metadata", "pipeline", "stages")
    for path in (SOURCE / layer).rglob("*.py")
)
TABLES = {"numpy", "pyarrow", "polars"}
CONFIG_CLI_HTTP = {"yaml", "msgspec", "rich", "shtab", "aiohttp", "packaging"}
FRAMEWORKS = {"torch", "faiss", "cv2", "transformers", "open_clip", "vllm"}
NO_KINDS = ("ops", "models", "clip", "losses", "readers", "towers")  # what stages share
PROFILING = "pipeline/engine/profiling.py"  # which samples workers, or traces their GPUs
DOCTOR = "pipeline/verbs/doctor.py"  # which tries whether torch sees a GPU
FENCED = "pipeline/run_folder/fenced.py"  # which asks S3 for what Arrow cannot
PAIRS = "pipeline/notebook/pairs.py"  # which makes datasets of these libraries
# What writes recipes, which name stages as a user's own do.
WRITE_RECIPES = ("pipeline/own_data/", "pipeline/bench/recipe.py", "pipeline/verbs/evaluate.py")
DOORS = {f"pipeline.{name}" for name in ("stage", "dataset", "errors", "extras", "own_code")}
RAY = {f"pipeline/{name}.py" for name in ("executors/ray", "executors/ray_pools", "ray_metrics")}
RAY |= {"pipeline/executors/ray_session.py"}
COMMANDS = ("pipeline/cli.py", "pipeline/verbs/")
# Who may import the report.
DRAW = ("pipeline/report/", "pipeline/notebook/", "pipeline/explore/", *COMMANDS)
ASK = ("pipeline/ledger/", "pipeline/bench/", *DRAW)  # who may import the ledger
POOLS = ("pipeline/pools/", "pipeline/verbs/pool.py")  # who may import the pools
BELOW_POOLS = {f"pipeline.{name}" for name in ("errors", "terminal", "target", "packages")}


@functools.cache
def imports(file: str) -> tuple[tuple[str, bool], ...]:
    """Every module that a file imports, ours without `clipmill.`, and whether at its top level."""
    text = (SOURCE / file).read_text(encoding="utf-8")
    in_words = "import_module" in text  # else no expression imports
    found, waiting = [], [(child, True) for child in ast.parse(text).body]
    while waiting:
        node, is_top = waiting.pop()
        if isinstance(node, ast.Import):
            found += [(alias.name.removeprefix("clipmill."), is_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides its layer"
            module = (node.module or "").removeprefix("clipmill.")
            names = [f"{module}.{alias.name}" for alias in node.names]
            if module == "clipmill":
                names, module = [alias.name for alias in node.names], ""
            found += [(name, is_top) for name in (names if _is_folder(module) else [module])]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]  # a recipe's own word is no constant
            if isinstance(name, ast.Constant):
                found += [(name.value.removeprefix("clipmill."), is_top)]
        is_top = is_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = ast.iter_child_nodes(node)
        waiting += [(it, is_top) for it in inside if in_words or not isinstance(it, ast.expr)]
    return tuple(found)


def _is_folder(module: str) -> bool:
    return (SOURCE / module.replace(".", "/")).is_dir()


def allowed(file: str, module: str, is_top: bool) -> bool:
    """DESIGN.md's table of layers, as a rule."""
    if module.startswith("pipeline.notebook"):
        return file.startswith("pipeline/notebook/")
    if module.startswith("pipeline.report"):
        return file.startswith(DRAW)
    if module.startswith("pipeline.explore"):
        return file.startswith(("pipeline/explore/", *COMMANDS))
    if module.startswith("pipeline.ledger"):
        return file.startswith(ASK)
    if module.startswith("pipeline.pools"):
        return file.startswith(POOLS)
    top = module.partition(".")[0]
    if file.startswith("pipeline/pools/"):
        libraries = {*sys.stdlib_module_names, *TABLES, "PIL", "resvg_py", "fontpkg", "aiohttp"}
        libraries |= {"metadata"}
        return top in libraries or module in BELOW_POOLS
    if top in sys.stdlib_module_names or module.startswith(
        file.rpartition("/")[0].replace("/", ".")
    ):
        return True
    if file == DOCTOR and top == "torch":
        return not is_top
    if file == FENCED and top == "botocore":
        return not is_top
    if file == PROFILING and top in ("torch", "pyinstrument"):
        return not is_top
    if top == "ray":
        return file in RAY
    if file.startswith("metadata/"):
        return top in TABLES | {"msgspec", "metadata"}
    if file.startswith("pipeline/"):
        drawing = {"PIL", "jinja2"} if file.startswith("pipeline/report/") else set()
        drawing |= {"jinja2"} if file == "pipeline/own_data/recipe.py" else set()
        drawing |= {"PIL", "torch", "datasets"} if file == PAIRS else set()
        drawing |= {"scipy"} if file == "pipeline/ledger/proof/noise.py" and not is_top else set()
        return top in TABLES | CONFIG_CLI_HTTP | drawing | {"metadata", "pipeline"}
    kind = file.split("/")[1]
    if top == "stages":
        return module.split(".")[1] in NO_KINDS
    if top == "pipeline":
        return ".".join(module.split(".")[:2]) in DOORS
    if top in FRAMEWORKS and is_top:
        return kind in NO_KINDS or is_kernel(file)
    return True


def is_kernel(file: str) -> bool:
    """Whether it is `stages/<kind>/_x.py`: imported by the stages of its kind, never by a plan."""
    return file.rpartition("/")[2].startswith("_")


@pytest.mark.slow("every file is parsed")
def test_a_file_imports_only_what_its_layer_may():
    wrong = [
        f"{file} imports {module} {'at its top level' if is_top else 'in a function'}"
        for file in FILES
        for module, is_top in imports(file)
        if not allowed(file, module, is_top)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(FILES) > 400


def test_the_rule_says_what_the_table_says():
    cases = [
        ("metadata/uid.py", "numpy", True, True),
        ("metadata/uid.py", "yaml", True, False),
        ("metadata/uid.py", "pipeline.errors", True, False),
        ("pipeline/ledger/proof/noise.py", "scipy.stats", True, False),
        ("pipeline/planning/plan.py", "msgspec", True, True),
        ("pipeline/planning/plan.py", "torch", False, False),
        ("pipeline/planning/plan.py", "stages.select._sql", False, False),
        ("pipeline/planning/plan.py", "PIL", False, False),
        ("pipeline/engine/chain.py", "stages.ops.images.decode", False, False),
        ("pipeline/verbs/doctor.py", "torch", False, True),
        ("pipeline/verbs/doctor.py", "torch", True, False),
        ("pipeline/verbs/doctor.py", "stages.ops.tasks.check", False, False),
        ("pipeline/run_folder/fenced.py", "botocore.config", False, True),
        ("pipeline/run_folder/fenced.py", "botocore.config", True, False),
        ("metadata/storage.py", "botocore.config", False, False),
        ("pipeline/pools/picture.py", "PIL", True, True),
        ("pipeline/engine/run.py", "pipeline.report.build", False, False),
        ("pipeline/planning/plan.py", "pipeline.ledger.rows.near", False, False),
        ("pipeline/ledger/selection/why.py", "pipeline.report.samples", False, False),
        ("pipeline/explore/shown.py", "pipeline.report.pictures", True, True),
        ("pipeline/report/build.py", "pipeline.explore.counts", False, False),
        ("pipeline/ledger/selection/why.py", "jinja2", False, False),
        ("pipeline/ledger/findings/planted.py", "pipeline.pools.faults", True, False),
        ("pipeline/report/build.py", "pipeline.ledger.selection.funnel", True, True),
        ("pipeline/notebook/answers.py", "pipeline.report.page", True, True),
        ("pipeline/report/build.py", "pipeline.notebook.answers", False, False),
        ("pipeline/verbs/funnel.py", "pipeline.notebook.answers", False, False),
        ("pipeline/report/build.py", "pipeline.pools.faults", True, False),
        ("pipeline/pools/build.py", "pipeline.report.page", False, False),
        ("pipeline/pools/build.py", "pipeline.planning.plan", False, False),
        ("pipeline/verbs/pool.py", "pipeline.pools.build", False, True),
        ("pipeline/verbs/concepts.py", "pipeline.pools.build", False, False),
        ("pipeline/engine/run.py", "ray", False, False),
        ("pipeline/executors/ray.py", "ray.data", True, True),
        ("stages/embed/clip.py", "pipeline.stage", True, True),
        ("stages/embed/clip.py", "pipeline.engine.run", True, False),
        ("stages/embed/clip.py", "stages.models.reference", True, True),
        ("stages/embed/clip.py", "stages.annotate.image", False, False),
        ("stages/export/parquet.py", "stages.export._groups", True, True),
        ("stages/embed/clip.py", "torch", True, False),
        ("stages/embed/clip.py", "torch", False, True),
        ("stages/embed/clip.py", "ray", False, False),
        ("stages/ops/images/decode.py", "cv2", True, True),
        ("stages/dedup/_earlier.py", "torch", True, True),
        ("stages/dedup/_earlier.py", "stages.select._cut", False, False),
    ]
    assert [case for case in cases if allowed(*case[:3]) is not case[3]] == []


def test_the_engine_names_no_stage():
    """Not by a word that is one, nor by its kind; texts for readers may, and so may recipes."""
    known = known_uses()
    words = {*known, *(f"{uses.partition('.')[0]}." for uses in known)}
    named = {
        f"{file}:{node.lineno}: {node.value}"
        for file in FILES
        if file.startswith("pipeline/") and not file.startswith("pipeline/pools/")
        for node in ast.walk(ast.parse((SOURCE / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in words
    }
    in_recipes = {at for at in named if at.startswith(WRITE_RECIPES)}
    assert named == in_recipes
    assert all(any(at.startswith(room) for at in in_recipes) for room in WRITE_RECIPES)


def test_no_array_is_read_that_could_hold_a_pickle():
    """numpy's default may change, and has: a file from elsewhere is data, never code."""
    asked = [
        f"{file}:{call.lineno}"
        for file in FILES
        if "load(" in (text := (SOURCE / file).read_text(encoding="utf-8"))
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("np.load", "numpy.load")
        and "allow_pickle=False" not in map(ast.unparse, call.keywords)
    ]
    assert asked == []


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        "import x.y, z\nfrom p import q\ndef f():\n    import late\n"
        "    from clipmill.stages import ops\n"
        "    importlib.import_module('by.name')\n    import_module(name)\n"
        "if TYPE_CHECKING:\n    import typed\n"
    )
    (tmp_path / "stages").mkdir()
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    assert set(imports("a.py")) == {
        *(("x.y", True), ("z", True), ("p", True), ("typed", True)),
        *(("late", False), ("stages.ops", False), ("by.name", False)),
    }


if __name__ == "__main__":  # a reminder, no limit
    for file in FILES:
        lines = len((SOURCE / file).read_text(encoding="utf-8").splitlines())
        if lines > 300:
            print(f"{lines:5}  {file}")
