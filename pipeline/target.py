"""Checks that a target folder is empty or ours."""

from collections.abc import Container

from clipmill.metadata.storage import Storage
from clipmill.pipeline.errors import RecipeError


def refuse_others(folder: Storage, ours: Container[str], do: str) -> None:
    """Raises RecipeError if the folder holds a file or folder of another name.

    Hidden ones are allowed: an editor's, or those of a killed writer.
    """
    names = [*(entry.name for entry in folder.entries()), *folder.folders()]
    others = sorted(name for name in names if name not in ours and not name.startswith("."))
    if others:
        raise RecipeError(f"the folder holds other files: {others[0]}", str(folder), do)
