"""Changes S3 by requests that the store refuses once the lease of the run's lock is over.

The end is in each request's signature, as in a presigned URL: a process that was stopped after it
looked at the lock, and woken when another run has the folder, is answered 403. Objects above
PART_BYTES are sent in parts, which show by one short last request. Needs botocore, as Arrow's own
requests hold for 15 minutes and have no conditions.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

from clipmill.metadata.keys import without_keys

PART_BYTES = 8 << 20
PARTS = 4  # sent at a time
LIST = 1000  # objects that one request deletes at most
ANSWER_S = 10  # a store that takes longer to answer is asked again
SLOW = {"copy_object": 300, "complete_multipart_upload": 300}  # while it moves an object's bytes
ERRORS = {
    "NoSuchKey": FileNotFoundError,
    "PreconditionFailed": FileExistsError,
    "ConditionalRequestConflict": FileExistsError,
}

_left_s: ContextVar[Callable[[], int]] = ContextVar("left_s")


class Fenced:
    """An S3 file system of Arrow whose changes botocore makes, each with an end.

    `left_s` returns the seconds for which a request may reach the store, or raises LostLockError.
    """

    def __init__(self, uri: str, filesystem: fs.S3FileSystem, left_s: Callable[[], int]) -> None:
        self._uri, self._fs, self._left_s = uri, filesystem, left_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)  # all that reads

    def upload(self, path: Path, place: str) -> None:
        """Stores a local file."""
        size = path.stat().st_size
        if size <= PART_BYTES:
            self._call("put_object", place, Body=path.read_bytes())
            return
        upload = {"UploadId": self._call("create_multipart_upload", place)["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * PART_BYTES)
                block = file.read(PART_BYTES)
            sent = self._call("upload_part", place, Body=block, PartNumber=number, **upload)
            return {"ETag": sent["ETag"], "PartNumber": number}

        with ThreadPoolExecutor(PARTS) as threads:
            parts = list(threads.map(send, range(1, -(-size // PART_BYTES) + 1)))
        self._call("complete_multipart_upload", place, MultipartUpload={"Parts": parts}, **upload)

    def copy_file(self, source: str, place: str) -> None:
        self._call("copy_object", place, CopySource=source)

    def delete_file(self, place: str) -> None:
        self._call("delete_object", place)

    def delete_dir(self, place: str) -> None:
        files = self._fs.get_file_info(fs.FileSelector(place, recursive=True))
        keys = [{"Key": info.path.partition("/")[2]} for info in files if info.is_file]
        for start in range(0, len(keys), LIST):
            self._call("delete_objects", place, Delete={"Objects": keys[start : start + LIST]})

    def get(self, place: str) -> tuple[bytes, str] | None:
        """Returns an object and its ETag; None if it is missing."""
        try:
            found = self._call("get_object", place)
        except FileNotFoundError:
            return None
        return found["Body"], found["ETag"]

    def replace(self, place: str, data: bytes, etag: str | None) -> None:
        """Stores an object in the place of the one with that ETag, or of none.

        Raises FileExistsError where another has come. A store that knows no conditions has none.
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            self._call("put_object", place, Body=data, **condition)
        except OSError as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise
            self._call("put_object", place, Body=data)

    def _call(self, operation: str, place: str, **more: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = place.partition("/")
        where = {"Bucket": bucket} | ({} if operation == "delete_objects" else {"Key": key})
        _left_s.set(self._left_s)
        answer_s = SLOW.get(operation, ANSWER_S)
        client = _client(os.getpid(), self._uri, self._fs.region, answer_s)
        try:
            answer: dict[str, Any] = getattr(client, operation)(**where, **more)
            if "Body" in answer:
                answer["Body"] = answer["Body"].read()
        except ClientError as error:
            self._left_s()  # the lock is lost: that is why
            code = error.response["Error"]["Code"]
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()  # as Arrow has it
            if "expired" in str(error):
                name = "REQUEST_TOO_LATE, see that this machine's clock is right"
            raise ERRORS.get(code, OSError)(f"{place}: AWS Error {name}: {error}") from None
        except BotoCoreError as error:  # it may name a URL, with its signature
            text = without_keys(str(error))
            raise OSError(f"{place}: AWS Error NETWORK_CONNECTION: {text}") from None
        if answer.get("Errors"):  # of `delete_objects`
            raise OSError(f"{place}: AWS Error {answer['Errors'][0]}")
        return answer


def fenced(uri: str, filesystem: fs.FileSystem, left_s: Callable[[], int]) -> Fenced | None:
    """Returns the file system with an end to each change; None where that cannot be."""
    if not isinstance(filesystem, fs.S3FileSystem) or find_spec("botocore") is None:
        return None
    parts = urlsplit(uri)
    return Fenced(parts._replace(path="").geturl(), filesystem, left_s)


@lru_cache
def _client(pid: int, uri: str, region: str, answer_s: int) -> Any:
    """Returns this process's client of the store that a URI names."""
    from botocore import UNSIGNED
    from botocore.auth import S3SigV4QueryAuth
    from botocore.config import Config
    from botocore.session import Session

    parts, session = urlsplit(uri), Session()
    options = dict(parse_qsl(parts.query))
    endpoint = options.get("endpoint_override")
    if parts.password:
        session.set_credentials(unquote(parts.username or ""), unquote(parts.password))
    client = session.create_client(
        "s3",
        region_name=region,
        endpoint_url=f"{options.get('scheme', 'https')}://{endpoint}" if endpoint else None,
        verify=options.get("tls_ca_file_path"),
        config=Config(
            signature_version=UNSIGNED,  # `sign` does it
            s3={"addressing_style": "path" if endpoint else "auto"},
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=answer_s,
            max_pool_connections=32,
            request_checksum_calculation="when_required",
        ),
    )
    credentials = session.get_credentials()

    def sign(request: Any, **_: Any) -> None:
        if credentials is None:  # the store will ask for them
            return
        keys = credentials.get_frozen_credentials()
        body, request.data = request.data, b""  # else it becomes a part of the URL
        S3SigV4QueryAuth(keys, "s3", region, expires=_left_s.get()()).add_auth(request)
        request.data = body

    client.meta.events.register("request-created.s3", sign)
    return client
