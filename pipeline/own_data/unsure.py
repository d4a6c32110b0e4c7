"""The question that data leave open: which of several columns, or of several layouts, is meant."""

from collections.abc import Mapping

from clipmill.pipeline.errors import RecipeError


class UnsureError(RecipeError):
    """`ask` names what is open (`caption`); `candidates` are its answers, each with an example."""

    def __init__(self, ask: str, candidates: Mapping[str, str], where: str, do: str) -> None:
        named = ", ".join(f"{name} ({it})" if it else name for name, it in candidates.items())
        super().__init__(f"{len(candidates)} may be the {ask}: {named}", where, do)
        self.ask = ask
        self.candidates = dict(candidates)
