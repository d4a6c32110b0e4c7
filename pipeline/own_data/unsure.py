"""The error for ambiguous data: several columns or layouts fit."""

from collections.abc import Mapping

from clipmill.pipeline.errors import RecipeError


class UnsureError(RecipeError):
    """An open question: `ask` names it (`caption`); `candidates` maps answers to examples."""

    def __init__(self, ask: str, candidates: Mapping[str, str], where: str, do: str) -> None:
        named = ", ".join(f"{name} ({text})" if text else name for name, text in candidates.items())
        super().__init__(f"{len(candidates)} may be the {ask}: {named}", where, do)
        self.ask = ask
        self.candidates = dict(candidates)
