"""Real servers of object stores on this machine, each with an empty bucket."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
from moto.server import ThreadedMotoServer
from pyarrow import fs


@contextlib.contextmanager
def s3_bucket() -> Iterator[str]:
    """The URI of a bucket that speaks S3 and takes any key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"scheme=http&region=us-east-1&endpoint_override={host}:{port}"
        filesystem, bucket = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
        filesystem.create_dir(bucket)
        yield f"s3://bucket?{options}"
    finally:
        server.stop()


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
