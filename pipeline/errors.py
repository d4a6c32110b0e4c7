"""Errors, named by what happens next.

ClipmillError
  RecipeError        the recipe or the arguments are wrong; exit code 2, nothing has run
  StageError         a stage cannot go on; exit code 1, finished shards stay
  LostLockError      another run has the folder; exit code 1, this one writes no more
  RankDiedError      a process of a launch has died; the launch starts again
    RankLostError    it was killed, or its machine is lost; the launch starts again, uncounted
  ShardError         this shard failed; the others go on
    RetryableError   this attempt failed; the shard is tried again
    CrashedError     it ended its worker each time; left alone until asked
"""

from collections.abc import Iterable

from clipmill.metadata.keys import without_keys
from clipmill.pipeline.terminal import cut

LONGEST = 2000  # characters of each part: an error may quote a value
NEAR = 0.6  # difflib's ratio: `lnag` to `lang` has 0.75, `nosuch` to `worth` 0.36
MOST_NAMED = 30  # known words listed if none is near


class ClipmillError(Exception):
    """An error with three required parts: what was found, where, and what to do.

    They are stored, too: keys are removed and long texts are cut.
    """

    def __init__(self, found: str, where: str, do: str) -> None:
        parts = (cut(without_keys(part), LONGEST) for part in (found, where, do))
        super().__init__(*parts)  # as args: the error must pickle to leave a worker

    def __str__(self) -> str:
        found, where, do = self.args
        return f"{found}\n  where: {where}\n  do:    {do}"


def did_you_mean(word: str, known: Iterable[str], known_are: str = "there are") -> str:
    """Returns a hint for an unknown word: one or two near known words, else the list.

    Near words differ by a typing slip, or one contains the other: `text` is near `text_col`.
    """
    import difflib  # only a mistake needs it

    words = list(dict.fromkeys(known))
    lower = word[:100].lower()
    by_lower = {known.lower(): known for known in reversed(words)}
    near = difflib.get_close_matches(lower, by_lower, n=2, cutoff=NEAR)
    parts = [other for other in by_lower if other in lower or lower in other]
    near += [other for other in parts if min(len(lower), len(other)) >= 3 and other not in near]
    if lower in by_lower:
        near = [lower]
    if near:
        return f"did you mean {' or '.join(repr(by_lower[other]) for other in near[:2])}?"
    more = f", … and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return f"{known_are}: {', '.join(words[:MOST_NAMED]) or 'none'}{more}"


class RecipeError(ClipmillError):
    """Stops the plan; nothing has run."""


class StageError(ClipmillError):
    """Stops the stage; finished shards stay."""


class LostLockError(ClipmillError):
    """Stops the run; another has its folder."""


class RankDiedError(ClipmillError):
    """Ends one attempt at a launch; all its processes start again."""


class RankLostError(RankDiedError):
    """Ends an attempt because of a kill or a lost machine; does not count against the work."""


class ShardError(ClipmillError):
    """Fails one shard; the others go on."""


class RetryableError(ShardError):
    """Fails one attempt; the shard is tried three times in all."""


class CrashedError(ShardError):
    """Fails one shard, which is left alone until `--retry crashed`."""
