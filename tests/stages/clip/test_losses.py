"""Losses by name: a user's file, what a loss asks for, what a mistake gets."""

import math
import subprocess
import sys

import pytest
import torch

from clipmill.pipeline.errors import RecipeError
from clipmill.pipeline.own_code import VARIABLE
from clipmill.stages.clip.losses import Declared, declared_by, find_loss, known
from tests.stages.losses.batches import of_pairs, random

MINE = """
import torch

TEXTS = "all"
TEACHER = ("image_embedding",)
BIAS = -10.0


def loss(batch, *, margin: float = 0.5, hard: bool = False, names=("a",)):
    return torch.full((len(batch.image_ND),), margin)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's file as `loss: mine_NUMBER`: a module is imported once, so each test has its own."""

    def write(source: str = MINE) -> str:
        name = f"mine_{tmp_path.name.removeprefix('test_')}"
        (tmp_path / "losses").mkdir(exist_ok=True)
        (tmp_path / "losses" / f"{name}.py").write_text(source)
        return name

    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return write


def test_a_users_file_is_a_loss_with_settings_of_its_own(mine):
    name = mine()
    batch = of_pairs(random(3, 2), random(3, 2))
    assert find_loss(name, {"margin": 2.0})(batch).tolist() == [2, 2, 2]
    assert find_loss(name)(batch).tolist() == [0.5, 0.5, 0.5]
    assert {name, "clip"} <= set(known())


def test_what_a_loss_asks_for_is_read_without_running_it(mine):
    name = mine("raise SystemExit\n" + MINE)
    assert declared_by(name, {"margin": 1}) == Declared(
        texts="all",
        teacher=("image_embedding",),
        bias=-10.0,
        settings={"margin": 1, "hard": False, "names": ("a",)},
    )
    assert declared_by("clip", {}) == Declared(settings={"smoothing": 0.0})


def test_a_constant_may_have_a_type_and_a_list_of_a_setting_may_be_empty(mine):
    name = mine(
        "NEEDS: tuple[str, ...] = ('average',)\nBIAS: float\n\n"
        "def loss(batch, *, names: Sequence[str] = ()):\n    return 1\n"
    )
    declared = declared_by(name, {"names": ["a"]})
    assert (declared.needs, declared.bias) == (("average",), None)
    assert declared.settings == {"names": ["a"]}


@pytest.mark.parametrize("name", ["clap", "clip/../clip", "_tiled", "losses.clip", ""])
def test_an_unknown_loss_is_refused_with_the_nearest(name):
    with pytest.raises(RecipeError) as error:
        declared_by(name, {})
    found, where, do = error.value.args
    assert (found, where) == (f"no loss '{name}'", "key `loss`")
    assert name != "clap" or do.startswith("did you mean 'clip' or 'a_clip'?")


@pytest.mark.parametrize(
    ("settings", "found", "do"),
    [
        ({"margn": 1.0}, "has no setting 'margn'", "did you mean 'margin'?"),
        ({"margin": "1"}, "margin is '1'", "write a value like 0.5"),
        ({"margin": True}, "margin is True", "write a value like 0.5"),
        ({"names": ["a", 1]}, "names is ['a', 1]", "write a value like ('a',)"),
        ({"names": "a"}, "names is 'a'", "write a value like ('a',)"),
        ({"hard": 1}, "hard is 1", "write a value like False"),
    ],
)
def test_a_wrong_setting_is_refused(mine, settings, found, do):
    with pytest.raises(RecipeError) as error:
        declared_by(mine(), settings)
    assert error.value.args[0].endswith(found)
    assert error.value.args[1:] == ("key `loss_settings`", do)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("a_clip", {"temperature": 0}, ("temperature is 0", "0.1")),
        ("intra_modal", {"temperature": -0.1}, ("temperature is -0.1", "0.1")),
        ("distill", {"temperature": math.nan}, ("temperature is nan", "1.0")),
        ("distill", {"scales": [1, 0]}, ("scales is [1, 0]", "(100.0,)")),
    ],
)
def test_a_setting_that_divides_must_be_above_zero(name, settings, found):
    with pytest.raises(RecipeError) as error:
        declared_by(name, settings)
    value, like = found
    assert error.value.args == (value, "key `loss_settings`", f"write a value like {like}")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def los(batch):\n    return 1\n", "holds no function `loss`"),
        ("\nBIAS = float('nan')\n\ndef loss(batch):\n    return 1\n", "must be computed"),
        ("\nPOSITIVE = ('a',)\n\ndef loss(batch, *, b=1.0):\n    return 1\n", "no setting 'a'"),
        ("\nTEXTS = 'both'\n\ndef loss(batch):\n    return 1\n", "TEXTS is 'both'"),
        ("\ndef loss(batch):\n    return (\n", "cannot be read: '(' was never closed"),
    ],
)
def test_a_users_file_that_is_wrong_is_named(mine, source, found):
    with pytest.raises(RecipeError, match="mine_") as error:
        declared_by(mine(source), {})
    assert found in str(error.value)


def test_a_users_file_that_fails_at_import_is_named(mine):
    name = mine("import no_such_package\n\ndef loss(batch):\n    return 1\n")
    with pytest.raises(RecipeError, match=rf"needs the package 'no_such_package': .*{name}.py:1"):
        find_loss(name)


def test_a_plan_that_asks_of_a_loss_imports_no_torch():
    code = "import sys\nfrom clipmill.stages.clip.losses import declared_by\n"
    code += "declared_by('clip', {})\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loss_of_pairs_is_its_mean_over_the_pairs_of_views():
    image, text, other, last = (random(4, 3, seed=n) for n in range(4))
    batch = of_pairs(image, text, image_views=[(other, other)], text_views=[(last, last)])
    clip = find_loss("clip")
    each = [clip(of_pairs(a, b)) for a in (image, other) for b in (text, last)]
    torch.testing.assert_close(clip(batch), torch.stack(each).mean(0))
    views = [(image, image)]
    again = clip(of_pairs(image, text, image_views=views))
    torch.testing.assert_close(again, clip(of_pairs(image, text)))
