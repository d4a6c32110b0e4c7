"""A concept list as a stage opens it."""

from metadata.concepts.load import ConceptList, ConceptListError, load
from pipeline.errors import StageError


def opened(uri: str, where: str) -> ConceptList:
    """The list; StageError where there is none, or none that can be matched with."""
    try:
        return load(uri)
    except (ConceptListError, OSError) as error:
        raise StageError(
            found=str(error), where=where, do="make a list with `clipmill concepts build`"
        ) from None
