"""The folders that bundled recipes write into, so that an upgrade finds what is stored.

python -m tests.pipeline.planning.test_bundled_fingerprints     writes fingerprints.json anew
"""

import json
from pathlib import Path

import pytest

from pipeline.planning.plan import make_plan
from pipeline.planning.recipe import load_recipe

HELD = Path(__file__).parent / "fingerprints.json"
RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"


def fingerprints(recipe: str) -> dict[str, str]:
    plan = make_plan(load_recipe(recipe))
    return {name: planned.fingerprint for name, planned in plan.stages.items()}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_bundled_recipe_finds_what_it_stored_before(recipe):
    assert fingerprints(recipe) == json.loads(HELD.read_text())[recipe]


if __name__ == "__main__":
    every = {path.stem: fingerprints(path.stem) for path in sorted(RECIPES.glob("*.yaml"))}
    HELD.write_text(json.dumps(every, indent=1) + "\n")
