"""Opening a concept list, with errors that name it."""

from metadata.concepts.load import ConceptList, ConceptListError, load
from metadata.fingerprint import digest
from metadata.storage import open_uri
from pipeline.errors import StageError


def opened(uri: str, where: str) -> ConceptList:
    """The list; StageError where there is none, or the file is no list of concepts."""
    try:
        return load(uri)
    except (ConceptListError, OSError) as error:
        raise StageError(
            found=str(error), where=where, do="make a list with `clipmill concepts build`"
        ) from None


def listing_digest(uri: str) -> str:
    """A digest that changes with the size or time of the list's file."""
    store, path = open_uri(uri)
    info = store.get_file_info(path)
    return digest([info.size, info.mtime_ns])
