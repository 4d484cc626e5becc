"""Real servers of object stores on this machine, each with an empty bucket."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

from tests.store_faults import FaultPlan, broken_connection, failing_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Faults:
    """One request in 25 fails, in one of three ways in turn; one in 150 is answered after ten seconds."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app, self._count = app, itertools.count(1)
        self.met: collections.Counter[str] = collections.Counter()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        number = next(self._count)
        if number % 150 == 0:
            self.met["stalled"] += 1
            time.sleep(10)
        elif number % 25 == 0:
            fault = ("503 Slow Down", "500 Internal Server Error", "cut off")[number // 25 % 3]
            self.met[fault] += 1
            if fault != "cut off":
                start_response(fault, [("Content-Type", "application/xml")])
                return [b"<Error><Code>InternalError</Code></Error>"]
            return itertools.chain(half(b"".join(self._app(environ, start_response))), broken_connection())
        return self._app(environ, start_response)


def half(body: bytes) -> list[bytes]:
    return [body[: len(body) // 2]]


@contextlib.contextmanager
def s3_bucket(
    faulty: bool = False, requests: list[str] | None = None, delay: float = 0, plan: FaultPlan | None = None
) -> Iterator[str]:
    """The URI of a bucket that speaks S3 and takes any key.

    `faulty`: with Faults. `requests`: each is added to this list. `delay`: of each answer, in seconds. `plan`: with
    these faults.
    """
    moto: WSGIApplication = DomainDispatcherApplication(create_backend_app)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if requests is not None:
            requests.append(" ".join(environ.get(key, "") for key in ("REQUEST_METHOD", "PATH_INFO", "HTTP_RANGE")))
        time.sleep(delay)
        return moto(environ, start_response)

    faults = Faults(app)
    served = faults if faulty else app if plan is None else failing_app(app, plan)
    server = make_server("127.0.0.1", 0, served, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_port}"
        name = f"bucket-{uuid.uuid4()}"  # what one server has, all of this process have
        filesystem, bucket = fs.FileSystem.from_uri(f"s3://{name}?{options}&allow_bucket_creation=true")
        filesystem.create_dir(bucket)
        yield f"s3://{name}?{options}"
        assert not faulty or len(faults.met) == 4, f"the test met only {faults.met}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def gcs_bucket() -> Iterator[str]:
    """The URI of a bucket that speaks Google Cloud Storage."""
    storage = Storage(use_memory_fs=True)
    create_bucket("bucket", storage)
    # The emulator's own server takes one connection at a time, and a client that holds one open waits for itself.
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(RequestHandler, storage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        options = f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}&retry_limit_seconds=20"
        yield f"gs://anonymous@bucket?{options}"
    finally:
        server.shutdown()
        server.server_close()
