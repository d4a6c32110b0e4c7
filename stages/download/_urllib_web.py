"""The standard library's `urlopen`, held to http, to allowed addresses and to a body's size."""

import socket
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from clipmill.stages.download._addresses import Allowed

PRIVATE = "not an address that may be asked"
TOO_LARGE = "the body is too large"


def opener(may: Allowed, max_body_bytes: int) -> OpenerDirector:
    """An opener of http and https URLs: no files, no ftp, no proxy from the environment.

    It raises OSError with PRIVATE where a connection is not allowed, at any redirect, and with
    TOO_LARGE where a body is larger.
    """

    class Body(HTTPResponse):
        def read(self, amt: int | None = None) -> bytes:
            body = super().read(max_body_bytes + 1)
            if len(body) > max_body_bytes:
                raise OSError(TOO_LARGE)
            if self.length:  # of a read with a limit it does not tell that the body was cut short
                raise IncompleteRead(body, self.length)
            return body

    def connection(made: type[HTTPConnection], host: str, **options) -> HTTPConnection:
        it = made(host, **options)
        it.response_class = Body
        it._create_connection = partial(_connected, may)  # type: ignore[attr-defined]  # its seam
        return it

    class Http(HTTPHandler):
        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(partial(connection, HTTPConnection), request)

    class Https(HTTPSHandler):
        def https_open(self, request: Request) -> HTTPResponse:
            return self.do_open(partial(connection, HTTPSConnection), request)

    director = OpenerDirector()
    also = (UnknownHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler, HTTPErrorProcessor)
    for handler in (Http, Https, *also):
        director.add_handler(handler())
    return director


def _connected(may: Allowed, address: tuple[str, int], *options) -> socket.socket:
    """socket.create_connection, to the first allowed address of the host that takes it."""
    host, port = address
    error = OSError(PRIVATE)
    for *_, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = str(target[0])
        if may.admits(ip, host):
            try:
                return socket.create_connection((ip, port), *options)
            except OSError as failed:
                error = failed
    raise error
