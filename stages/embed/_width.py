"""How wide a model's vectors are: said by its name, or else by the recipe."""

from clipmill.pipeline.errors import RecipeError, StageError


def planned_width(model: str, known: int | None, given: int | None) -> int:
    """The width that a plan goes by; RecipeError where nothing says it, or two say different."""
    if known is None and given is None:
        do = "write width: <how many numbers its embeddings have>"
        raise RecipeError(f"only its weights say how wide {model!r} is", "key `model`", do)
    if None not in (known, given) and known != given:
        do = f"write width: {known}, or leave it out"
        raise RecipeError(f"{model!r} is {known} wide, not {given}", "key `width`", do)
    return known or given or 0


def check_width(found: int, planned: int, stage: str) -> None:
    """StageError where the weights are of another width."""
    if found != planned:
        raise StageError(
            found=f"a model that is {found} wide, where {planned} was planned",
            where=f"stage '{stage}', key `width`",
            do=f"write width: {found}",
        )
