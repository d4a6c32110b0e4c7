"""Errors, named by what happens next.

ClipmillError
  RecipeError        the recipe or the arguments are wrong; exit code 2, nothing has run
  StageError         a stage cannot go on; exit code 1, finished shards stay
  LostLockError      another run has the folder; exit code 1, this one writes no more
  ShardError         this shard failed; the others go on
    RetryableError   the same, and trying again may help
    CrashedError     the same, as it ended its worker each time
"""

from metadata.keys import without_keys
from pipeline.terminal import cut

LONGEST = 2000  # characters of each part: an error may quote a value


class ClipmillError(Exception):
    """What was found, where, and what to do: three arguments, so that none is left out.

    They hold no keys and are not long, for they are stored too.
    """

    def __init__(self, found: str, where: str, do: str) -> None:
        parts = (cut(without_keys(part), LONGEST) for part in (found, where, do))
        super().__init__(*parts)  # as args: the error must pickle to leave a worker

    def __str__(self) -> str:
        found, where, do = self.args
        return f"{found}\n  where: {where}\n  do:    {do}"


class RecipeError(ClipmillError):
    """Stops the plan: nothing has run."""


class StageError(ClipmillError):
    """Stops the stage: what is finished stays."""


class LostLockError(ClipmillError):
    """Stops the run: another has its folder."""


class ShardError(ClipmillError):
    """Fails one shard: the others go on."""


class RetryableError(ShardError):
    """Fails one attempt: the shard is tried again, three times in all."""


class CrashedError(ShardError):
    """Fails one shard, which is left alone until `--retry crashed`."""
