"""Opening a concept list, with errors that name it."""

from clipmill.metadata.concepts.load import ConceptList, ConceptListError, load
from clipmill.pipeline.errors import StageError


def opened(uri: str, where: str) -> ConceptList:
    """The list; StageError where there is none, or the file is no list of concepts."""
    try:
        return load(uri)
    except (ConceptListError, OSError) as error:
        raise StageError(
            found=str(error), where=where, do="make a list with `clipmill concepts build`"
        ) from None
