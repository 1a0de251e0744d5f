"""One file system object per process and store."""

import os
from functools import lru_cache
from urllib.parse import parse_qsl

import pyarrow as pa
from pyarrow import fs

from shoal.errors import StorageError, did_you_mean
from shoal.storage.retry import until_it_answers
from shoal.storage.uri import Uri

CONNECT_TIMEOUT_SEC = 5.0
SILENCE_TIMEOUT_SEC = 15.0
"""Without a byte from the store, before a request counts as lost."""

S3_OPTIONS = ("region", "scheme", "endpoint_override")
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


def filesystem(uri: Uri) -> fs.FileSystem:
    """Return the file system that a URI is on, made at its first use.

    Raises:
        StorageError: options that the store does not know.
    """
    # A forked child must not share connections with its parent: their answers would mix.
    return _open(os.getpid(), uri.scheme, uri.host, uri.query)


@lru_cache(maxsize=64)
def _open(pid: int, scheme: str, host: str, query: str) -> fs.FileSystem:
    uri = Uri(scheme, host, "", query)
    if scheme == "s3":
        return _open_s3(uri)
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in query:
        # Its own patience is 15 minutes, within a call that nothing interrupts.
        query = f"{query}&retry_limit_seconds=5".lstrip("&")
    try:
        opened, _ = fs.FileSystem.from_uri(str(Uri(scheme, host, "any", query)))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: {error}; check the URI") from error
    return opened


def _open_s3(uri: Uri) -> fs.S3FileSystem:
    options = dict(parse_qsl(uri.query))
    for name in options:
        if name not in S3_OPTIONS:
            raise StorageError(
                f"{uri}: no option {name!r}{did_you_mean(name, S3_OPTIONS)}; known are {', '.join(S3_OPTIONS)}"
            )
    endpoint = options.get("endpoint_override") or _first_set(ENDPOINT_VARIABLES)
    region = options.get("region")
    if region is None and endpoint:
        region = _first_set(REGION_VARIABLES) or "us-east-1"
    if region is None:
        region = until_it_answers(lambda: fs.resolve_s3_region(uri.host), str(uri))
    try:
        return fs.S3FileSystem(
            region=region,
            endpoint_override=endpoint,
            scheme=options.get("scheme"),
            connect_timeout=CONNECT_TIMEOUT_SEC,
            request_timeout=SILENCE_TIMEOUT_SEC,
            allow_delayed_open=True,  # one request for a small object in place of three
            # A few quick ones, so that a part of an upload need not be all of it again; the rest is ours to decide.
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        )
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: {error}; check the options after '?'") from error


def _first_set(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
