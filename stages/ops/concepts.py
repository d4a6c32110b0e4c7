"""Reads a list of concepts for a stage."""

from clipmill.metadata.concepts.load import ConceptList, ConceptListError, load
from clipmill.pipeline.errors import StageError


def concept_list(uri: str, where: str) -> ConceptList:
    """Returns the list; StageError if there is none, or the file is no list of concepts."""
    try:
        return load(uri)
    except (ConceptListError, OSError) as error:
        raise StageError(
            found=str(error), where=where, do="make a list with `clipmill concepts build`"
        ) from None
