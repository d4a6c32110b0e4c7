"""What a reader of one stage has to open: the lines and files of stages/ that it stands on.

python -m tests.test_closure     lists them by stage
"""

import ast
import functools
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).parents[1] / "clipmill"
SHARED = ("ops", "models", "clip", "losses", "readers", "towers")
# What a stage may take from below stages/ and is not counted: all of it together is as long as
# BELOW at most, so that no line is hidden there.
PUBLIC = {
    *(f"pipeline.{name}" for name in ("stage", "dataset", "errors", "extras", "own_code")),
    *("metadata.schema", "metadata.uid", "metadata.keys", "metadata.fingerprint"),
    *("metadata.storage", "metadata.globs", "metadata.outputs", "metadata.limits"),
    *("metadata.concepts.load", "metadata.datacard", "metadata.evaluated", "metadata.hosts"),
    *("metadata.places", "metadata.scratch", "metadata.shard", "metadata.stats"),
    "metadata.subset_file",
}
BELOW = 3_200
# Of the stage in the middle.
MEDIAN = 800, 7
# Of any other stage: those beyond it are exceptions, whose figures only shrink.
MOST = 2_250, 17
EXCEPTIONS = {
    "ingest.table": (2_500, 9),
    "caption.synthesize": (2_750, 19),
    "evaluate.zero_shot": (3_000, 20),
    "dedup.against": (4_300, 30),
    "select.image_based": (4_100, 31),
    "train.clip": (3_000, 20),
}
LOOSE = 150, 2  # a figure that is so far above what it bounds has to be lowered


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Modules of ours that a file imports, anywhere in it, without `clipmill.`."""
    tree = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            named |= {f"{node.module}", *(f"{node.module}.{it.name}" for it in node.names)}
        elif isinstance(node, ast.Import):
            named |= {it.name for it in node.names}
    ours = {name.removeprefix("clipmill.") for name in named if name.startswith("clipmill.")}
    return frozenset(it for it in ours if (SOURCE / f"{it.replace('.', '/')}.py").is_file())


@functools.cache
def lines(module: str) -> int:
    return len((SOURCE / f"{module.replace('.', '/')}.py").read_bytes().splitlines())


@functools.cache
def closure(stage: str) -> frozenset[str]:
    """The modules of stages/ that it imports, and those that these import, itself among them."""
    seen: set[str] = set()
    waiting = [f"stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module.startswith("stages.") and module not in seen:
            seen.add(module)
            waiting += imported(module)
    return frozenset(seen)


def size(stage: str) -> tuple[int, int]:
    return sum(map(lines, closure(stage))), len(closure(stage))


STAGES = sorted(
    f"{path.parent.name}.{path.stem}"
    for path in (SOURCE / "stages").glob("*/[!_]*.py")
    if path.parent.name not in SHARED
)


def test_a_stage_takes_from_below_what_all_may():
    used = {it for stage in STAGES for module in closure(stage) for it in imported(module)}
    assert {it for it in used if not it.startswith("stages.")} == PUBLIC
    assert sum(map(lines, PUBLIC)) <= BELOW, "lines moved there are still read"


def test_most_stages_can_be_read_at_once():
    many, files = zip(*map(size, STAGES), strict=True)
    assert within((median(many), median(files)), MEDIAN)


def test_a_stage_stands_on_few_lines():
    wrong = {}
    for stage in STAGES:
        there, most = size(stage), EXCEPTIONS.get(stage, MOST)
        is_right = not exceeds(there, most)
        if stage in EXCEPTIONS:
            is_right = within(there, most) and exceeds(there, MOST)  # else it is none
        if not is_right:
            wrong[stage] = f"{there} of {most}"
    assert wrong == {}


def test_an_exception_is_a_stage():
    assert EXCEPTIONS.keys() <= set(STAGES)


def test_no_part_imports_its_whole():
    """No circle of imports in stages/, for types neither."""
    for path in (SOURCE / "stages").rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        whole = module.removeprefix("stages.")
        parts = {it for it in closure(whole) if it != module and module in imported(it)}
        assert not parts, f"{module} is imported by what it imports: {sorted(parts)}"


def exceeds(there: tuple[int, int], most: tuple[int, int]) -> bool:
    return any(it > limit for it, limit in zip(there, most, strict=True))


def within(there: tuple[float, float], most: tuple[int, int]) -> bool:
    """Whether both figures are at their limit, or little below it."""
    return all(
        limit - loose < it <= limit for it, limit, loose in zip(there, most, LOOSE, strict=True)
    )


if __name__ == "__main__":
    for there, name in sorted((size(stage), stage) for stage in STAGES):
        print(f"{name:26} {there[0]:6,} lines in {there[1]:2} files")
