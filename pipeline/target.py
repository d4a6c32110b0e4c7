"""A folder that is written to: empty, or ours."""

from collections.abc import Container

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError


def refuse_others(folder: Storage, ours: Container[str], do: str) -> None:
    """RecipeError where the folder holds a file or a folder that has none of these names.

    Hidden ones may be there: an editor's, or what a killed writer left.
    """
    names = [*(entry.name for entry in folder.entries()), *folder.folders()]
    others = sorted(name for name in names if name not in ours and not name.startswith("."))
    if others:
        raise RecipeError(f"the folder holds other files: {others[0]}", str(folder), do)
