"""Finds losses by name: `loss: NAME` is stages/losses/NAME.py, in this package or a user's folder.

The file has a function `loss`, which takes an Embedded and returns the nats of each local row. Its
keyword arguments are the loss's settings; constants beside it declare its inputs. All is read by a
plan without running the file. A function `state` beside it, if any, returns a Module of the loss's
own weights and memory, `batch.own`; its `begin`, if any, sees a step's trainer and pictures first.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from clipmill.pipeline import own_code
from clipmill.pipeline.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from clipmill.stages.clip.embedded import Embedded

Value = bool | int | float | str | Sequence[str] | Sequence[float]  # of a setting
TEXTS = ("one", "first", "all")
CONSTANTS = ("TEXTS", "TEACHER", "NEGATIVES", "VIEWS", "NEEDS", "BIAS", "SCALE", "POSITIVE")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Inputs and start values that a loss declares."""

    texts: str = "one"  # of a row: one (by the training's `texts`), the first, or all
    teacher: tuple[str, ...] = ()  # columns of the export; TEACHER may name settings that hold them
    negatives: str | None = None  # a column of texts, false of the image; or the setting with it
    # of "image" and "text", of which the loss takes two views; None: it is the mean over pairs
    views: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()  # settings of the training that it cannot do without
    bias: float | None = None  # initial bias of all logits; None: the loss has no bias
    scale: float | None = None  # initial scale of all cosines; None: the model's
    settings: Mapping[str, Value]  # of the loss, defaults included


def declared_by(name: str, settings: Mapping[str, Value]) -> Declared:
    """Returns what a loss declares; raises RecipeError if it or one of its settings is unknown."""
    function, constants = _read(name)
    arguments = function.args
    defaults = {
        argument.arg: _plain(default, argument.arg, name)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    declared = {key.lower(): _plain(value, key, name) for key, value in constants.items()}
    positive = declared.pop("positive", ())
    for key in (*settings, *positive):
        if key not in defaults:
            do = did_you_mean(key, defaults, f"'{name}' knows")
            found = f"the loss '{name}' has no setting '{key}'"
            raise RecipeError(found, "key `loss_settings`", do)
    for key, value in settings.items():
        if not _fits(value, defaults[key], key in positive):
            do = f"write a value like {defaults[key]!r}"
            raise RecipeError(f"{key} is {value!r}", "key `loss_settings`", do)
    if declared.get("texts", "one") not in TEXTS:
        do = f"write one of: {', '.join(TEXTS)}"
        raise RecipeError(f"TEXTS is {declared['texts']!r}", f"stages/losses/{name}.py", do)
    settings = defaults | dict(settings)
    named = [settings.get(word, word) for word in declared.pop("teacher", ())]
    columns = [name for words in named for name in ([words] if isinstance(words, str) else words)]
    if word := declared.get("negatives"):
        declared["negatives"] = settings.get(word, word)
    return Declared(**declared, teacher=(*dict.fromkeys(columns),), settings=settings)


def _fits(value: Any, default: Any, is_positive: bool) -> bool:
    """Returns whether a value has the type of the setting's default; an int is a float too."""
    if isinstance(default, tuple):
        is_list = isinstance(value, list | tuple)
        return is_list and all(_fits(item, default[0], is_positive) for item in value if default)
    is_number = (type(default), type(value)) == (float, int)
    return (type(value) is type(default) or is_number) and (not is_positive or value > 0)


def find_loss(
    name: str, settings: Mapping[str, Value] | None = None
) -> "Callable[[Embedded], Tensor]":
    """Imports a loss and binds its settings."""
    _, constants = _read(name)
    loss = own_code.load(f"losses.{name}", "key `loss`").loss
    loss = partial(loss, **settings) if settings else loss
    return loss if "VIEWS" in constants else partial(over_pairs, loss)


def state_of(
    name: str, settings: Mapping[str, Value], *, samples: int, width: int, seed: int
) -> "Module | None":
    """Returns what the loss's function `state` does: weights that learn, and what it remembers of
    each of `samples` rows; None without one. `settings` are all of them.

    The draws of torch's generator depend on the seed alone.
    """
    import torch

    make = getattr(own_code.load(f"losses.{name}", "key `loss`"), "state", None)
    if make is None:
        return None
    bits = int.from_bytes(blake2b(f"{seed} loss".encode(), digest_size=8).digest(), "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        return make(samples=samples, width=width, seed=seed, settings=settings)


def over_pairs(loss: "Callable[[Embedded], Tensor]", batch: "Embedded") -> "Tensor":
    """Returns (N,) nats: the mean of a loss over the pairs of an image's view and a text's.

    Source: CLIP-rocket (Fini et al. 2023), which sums them, and has a head for each kind of view.
    """
    images = [(batch.image_ND, batch.image_GD), *batch.image_views]
    texts = [(batch.text_MD, batch.text_HD), *batch.text_views]
    of_pairs = [
        loss(replace(batch, image_ND=image_ND, image_GD=image_GD, text_MD=text_MD, text_HD=text_HD))
        for image_ND, image_GD in images
        for text_MD, text_HD in texts
    ]
    return sum(of_pairs[1:], of_pairs[0]) / len(of_pairs)


def known() -> list[str]:
    """Returns the names of all losses, those of a user's own folders included; imports none."""
    return sorted(name.partition(".")[2] for name in own_code.files("losses"))


def digest_of(name: str) -> str | None:
    """Returns the SHA-256 of a user's own file; None for ours, which the stage's version covers."""
    file = own_code.files("losses")[f"losses.{name}"]
    return file.digest if file.is_own else None


def _read(name: str) -> tuple[ast.FunctionDef, dict[str, ast.expr]]:
    """Parses the function of a loss and its constants from its file."""
    if name not in known():
        own = "A loss of your own is a file stages/losses/<name>.py beside the recipe"
        do = f"{did_you_mean(name, known())}  {own}"
        raise RecipeError(f"no loss '{name}'", "key `loss`", do)
    file = own_code.files("losses")[f"losses.{name}"]
    try:
        body = own_code.parsed(file.read()).body
    except SyntaxError as error:
        where = f"{file.path}:{error.lineno}"
        raise RecipeError(f"it cannot be read: {error.msg}", where, "mend the file") from None
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "loss"]
    if not functions:
        do = "write `def loss(batch: Embedded) -> Tensor`"
        raise RecipeError(f"{file.path} holds no function `loss`", "key `loss`", do)
    constants = {
        target.id: node.value
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id in CONSTANTS
    }
    return functions[-1], constants


def _plain(node: ast.expr | None, what: str, name: str) -> Any:
    """Returns the value of a literal; raises RecipeError for any other expression."""
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]  # of None it raises
    except (ValueError, TypeError):
        found = "has a value that must be computed" if node else "has no default"
        do = "write a number or a text: it is read without running the file"
        raise RecipeError(f"{what} {found}", f"stages/losses/{name}.py", do) from None
