"""Makes a recipe for data of one's own from Python."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from clipmill.pipeline.errors import RecipeError, did_you_mean
from clipmill.pipeline.own_data.roles import NAMED
from clipmill.pipeline.own_data.start import Request, start

OWN = {"path", "columns", "folder", "moving"}  # of a request: given otherwise, or not at all
OPTIONS = tuple(field.name for field in fields(Request) if field.name not in OWN)


def recipe_of(data: str, options: Mapping[str, Any]) -> str:
    """Returns the recipe's text; RecipeError if the data are not understood, or more is to be said.

    `options` are those of `clipmill init`: caption="title", keep=0.3, to=["webdataset"].
    """
    for name in options:
        if name not in (*NAMED, *OPTIONS):
            do = did_you_mean(name, (*NAMED, *OPTIONS), "options")
            raise RecipeError(f"no option '{name}'", "the arguments", do)
    wishes = {name: options[name] for name in OPTIONS if name in options}
    if "to" in wishes:
        wishes["to"] = (wishes["to"],) if isinstance(wishes["to"], str) else tuple(wishes["to"])
    wishes |= {name: _whole(wishes[name]) for name in ("pictures", "trusted") if wishes.get(name)}
    columns = {name: options[name] for name in NAMED if name in options}
    request = Request(path=_whole(data), columns=columns, **wishes)
    return start(request, "clipmill.init", "clipmill run RECIPE --out RUN").recipe


def _whole(path: str) -> str:
    return str(path) if "://" in str(path) else os.path.abspath(path)
