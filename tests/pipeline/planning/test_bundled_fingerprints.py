"""The folders that bundled recipes write into, so that an upgrade finds what is stored.

python -m tests.pipeline.planning.test_bundled_fingerprints     writes fingerprints.json anew
"""

import json
from pathlib import Path

from clipmill.pipeline.planning.plan import make_plan
from clipmill.pipeline.planning.recipe import load_recipe

HELD = Path(__file__).parent / "fingerprints.json"
RECIPES = Path(__file__).parents[3] / "clipmill" / "pipeline" / "recipes"


def fingerprints(recipe: str) -> dict[str, str]:
    plan = make_plan(load_recipe(recipe))
    return {name: planned.fingerprint for name, planned in plan.stages.items()}


def of_all() -> dict[str, dict[str, str]]:
    return {path.stem: fingerprints(path.stem) for path in sorted(RECIPES.glob("*.yaml"))}


def test_every_bundled_recipe_can_be_planned_and_finds_what_it_stored_before():
    found = of_all()
    assert found == json.loads(HELD.read_text())
    assert {name: [*prints] for name, prints in found.items()} == {
        name: [*load_recipe(name).stages] for name in found
    }


if __name__ == "__main__":
    HELD.write_text(json.dumps(of_all(), indent=1) + "\n")
