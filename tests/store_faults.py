"""What goes wrong in an object store that speaks S3: chosen requests are refused, cut, stalled, or answered falsely."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

How = Literal[
    "503",
    "500",
    "403",
    "404",
    "cut before",
    "cut after",
    "cut within",
    "stall",
    "error in 200",
    "lie",
    "short",
    "empty",
]
"""What happens to a request.

`503` … `404`: it is refused, and nothing is done. `cut before`, `cut after`, `cut within`: the connection breaks before
the request is handled, after it without an answer, in the middle of the answer. `stall`: it is handled late, even if
nobody waits any more. `error in 200`: nothing is done, and the answer is 200 with an XML error, as real stores end
CompleteMultipartUpload and CopyObject. `lie`: nothing is done, and the answer says that it was. `short`: half of the
content is stored, and the answer says that all of it was. `empty`: what is listed has nothing in it.
"""
REFUSED = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Server Error", "InternalError"),
    "403": ("403 Forbidden", "AccessDenied"),
    "404": ("404 Not Found", "NoSuchKey"),
}


class Request(NamedTuple):
    """What a client asked for."""

    operation: str
    """As S3 names it: `UploadPart`, `ListObjectsV2`, …"""
    keys: tuple[str, ...]
    """Of the object; of all that are deleted at once; the prefix of what is listed. Without the bucket."""

    @classmethod
    def of(cls, environ: WSGIEnvironment, body: bytes) -> Request:
        method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        if method == "POST" and "delete" in query:
            return cls("DeleteObjects", tuple(re.findall(r"<Key>(.*?)</Key>", body.decode(errors="replace"))))
        if not key:
            listing = method == "GET" and "list-type" in query
            bucket = {"HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(method, str(method))
            return cls("ListObjectsV2" if listing else bucket, tuple(query.get("prefix", [""])))
        if "uploads" in query:
            return cls("CreateMultipartUpload", (key,))
        if "uploadId" in query:
            parts = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
            return cls(parts.get(method, str(method)), (key,))
        copied = method == "PUT" and "HTTP_X_AMZ_COPY_SOURCE" in environ
        return cls("CopyObject" if copied else f"{method.capitalize()}Object", (key,))


@dataclass
class Fault:
    """What happens to which requests."""

    how: How
    operation: str = ""
    """S3's name of it; empty: any."""
    key: str = ""
    """A regular expression that is searched for in the key."""
    skip: int = 0
    """How many of these requests are handled well before the first that is not."""
    times: float = math.inf
    """How many are not."""
    seconds: float = math.inf
    """For how long after the first they are not."""
    stall: float = 10.0
    """Seconds until a stalled request is handled."""
    met: int = field(default=0, init=False)
    """How many requests it happened to."""
    pending: int = field(default=0, init=False)
    """How many of those are not handled yet."""
    _passed: int = field(default=0, init=False)
    _began: float = field(default=math.inf, init=False)

    def strikes(self, request: Request) -> bool:
        """Whether it happens to this request, which counts as one of `skip` or `times` if it could."""
        if self.operation not in ("", request.operation) or not any(re.search(self.key, key) for key in request.keys):
            return False
        if self._passed < self.skip:
            self._passed += 1
            return False
        if self.met >= self.times or time.monotonic() - self._began > self.seconds:
            return False
        self._began = min(self._began, time.monotonic())
        self.met += 1
        self.pending += 1
        return True


class FaultPlan:
    """The faults of a server at the moment, and the requests that it was sent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """The server has these faults while the block runs."""
        with self._lock:
            self._faults.extend(faults)
        try:
            yield
        finally:
            with self._lock:
                self._faults = [fault for fault in self._faults if not any(fault is ended for ended in faults)]

    def next(self, request: Request) -> Fault | None:
        """What happens to this request."""
        with self._lock:
            self.requests.append(request)
            return next((fault for fault in self._faults if fault.strikes(request)), None)

    def ended(self, fault: Fault) -> None:
        """A request with this fault has been handled."""
        with self._lock:
            fault.pending -= 1


def failing_app(app: WSGIApplication, plan: FaultPlan) -> WSGIApplication:
    """The same server with the faults of a plan."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        whole = "wsgi.input_terminated" in environ  # else it ends only when the client leaves
        body = environ["wsgi.input"].read(-1 if whole else int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        request = Request.of(environ, body)
        fault = plan.next(request)
        if fault is None:
            return app(environ, start_response)
        try:
            return answer(app, environ, start_response, request, fault)
        finally:
            plan.ended(fault)

    return serve


def answer(
    app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse, request: Request, fault: Fault
) -> Iterable[bytes]:
    """What the client gets of a request with a fault. Raises ConnectionResetError, which cuts the connection."""
    if fault.how == "cut before":
        raise cut(environ)
    if fault.how in REFUSED:
        status, code = REFUSED[fault.how]
        return xml(start_response, status, f"<Error><Code>{code}</Code><Message>made up</Message></Error>")
    if fault.how == "error in 200":
        return xml(start_response, "200 OK", "<Error><Code>InternalError</Code><Message>made up</Message></Error>")
    if fault.how in ("lie", "empty"):
        return false_answer(environ, start_response, request)
    if fault.how == "short":
        return app(shortened(environ), start_response)
    if fault.how == "stall":
        time.sleep(fault.stall)
        return list(app(environ, start_response))
    return cut_answer(app, environ, start_response, fault.how)


def cut_answer(
    app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse, how: How
) -> Iterable[bytes]:
    if how == "cut after":
        for _ in app(environ, lambda *_: lambda _: None):
            pass
        raise cut(environ)
    whole = b"".join(app(environ, start_response))
    if not whole:  # the answer is its head, which is sent with the body: half a head goes past the server
        environ["werkzeug.socket"].sendall(b"HTTP/1.1 200 OK\r\nETa")
        raise cut(environ)
    return itertools.chain([whole[: len(whole) // 2]], broken_connection())


def cut(environ: WSGIEnvironment) -> ConnectionResetError:
    """Ends the connection, which the server would keep for another request. Returns what ends the request too."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return ConnectionResetError()


def broken_connection() -> Iterator[bytes]:
    raise ConnectionResetError
    yield b""


def false_answer(environ: WSGIEnvironment, start_response: StartResponse, request: Request) -> Iterable[bytes]:
    """That all is well, though nothing was done."""
    key, namespace = request.keys[0], 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    etag = hashlib.md5(content_of(environ)).hexdigest()
    bodies: dict[str, Callable[[], str]] = {
        "CreateMultipartUpload": lambda: f"<Key>{key}</Key><UploadId>none</UploadId>",
        "CompleteMultipartUpload": lambda: f"<Key>{key}</Key><ETag>&quot;{etag}-1&quot;</ETag>",
        "DeleteObjects": lambda: "".join(f"<Deleted><Key>{one}</Key></Deleted>" for one in request.keys),
        "ListObjectsV2": lambda: f"<Prefix>{key}</Prefix><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>",
        "CopyObject": lambda: f"<ETag>&quot;{etag}&quot;</ETag>",
    }
    roots = {
        "CreateMultipartUpload": "InitiateMultipartUploadResult",
        "DeleteObjects": "DeleteResult",
        "ListObjectsV2": "ListBucketResult",
    }
    if request.operation in bodies:
        root = roots.get(request.operation, f"{request.operation}Result")
        return xml(start_response, "200 OK", f"<{root} {namespace}>{bodies[request.operation]()}</{root}>")
    if request.operation.startswith("Delete"):
        start_response("204 No Content", [])
        return []
    start_response("200 OK", [("ETag", f'"{etag}"'), ("Content-Length", "0")])
    return [b""]


def xml(start_response: StartResponse, status: str, content: str) -> Iterable[bytes]:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{content}'.encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def content_of(environ: WSGIEnvironment) -> bytes:
    """What a request wants to store, without the chunks that it is sent in."""
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(body)
    if not environ.get("HTTP_X_AMZ_CONTENT_SHA256", "").startswith("STREAMING-"):
        return bytes(body)
    content, stream = b"", io.BytesIO(body)
    while size := int(stream.readline().split(b";")[0] or b"0", 16):
        content += stream.read(size)
        stream.readline()
    return content


def shortened(environ: WSGIEnvironment) -> WSGIEnvironment:
    """The request with half of its content."""
    content = content_of(environ)
    half = content[: len(content) // 2]
    chunked = (
        "HTTP_CONTENT_ENCODING",
        "HTTP_TRANSFER_ENCODING",
        "HTTP_X_AMZ_TRAILER",
        "HTTP_X_AMZ_DECODED_CONTENT_LENGTH",
    )
    kept = {name: value for name, value in environ.items() if name not in chunked}
    return kept | {
        "wsgi.input": io.BytesIO(half),
        "CONTENT_LENGTH": str(len(half)),
        "HTTP_X_AMZ_CONTENT_SHA256": "UNSIGNED-PAYLOAD",
    }
