"""Errors, named by what happens next.

ClipmillError
  RecipeError        the recipe or the arguments are wrong; exit code 2, nothing has run
  StageError         a stage cannot go on; exit code 1, finished shards stay
  ShardError         this shard failed; the others go on
    RetryableError   the same, and trying again may help
"""


class ClipmillError(Exception):
    """What was found, where, and what to do: three arguments, so that none is left out."""

    def __init__(self, found: str, where: str, do: str) -> None:
        super().__init__(found, where, do)  # as args: the error must pickle to leave a worker

    def __str__(self) -> str:
        found, where, do = self.args
        return f"{found}\n  where: {where}\n  do:    {do}"


class RecipeError(ClipmillError):
    """Stops the plan: nothing has run."""


class StageError(ClipmillError):
    """Stops the stage: what is finished stays."""


class ShardError(ClipmillError):
    """Fails one shard: the others go on."""


class RetryableError(ShardError):
    """Fails one attempt: the shard is tried again, three times in all."""
