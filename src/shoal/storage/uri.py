"""What a user may write as a place, in one normal form: an absolute local path, or a URI of an object store."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from shoal.errors import StorageError, did_you_mean

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""What `pyarrow.fs` opens, besides local files."""

SAFE_IN_KEY = "/-_.~!$&'()*+,;=:@"
SECRET = re.compile(r"key|secret|token|password|sig\b|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Uri:
    """A URI in its parts.

    Attributes:
        scheme: ``s3``, ``gs``, …
        host: the bucket; for HDFS the name node.
        key: where in it, unquoted, without slashes at its ends; empty for the bucket itself.
        query: options of the file system, as written.
    """

    scheme: str
    host: str
    key: str
    query: str

    def __str__(self) -> str:
        path = f"/{quote(self.key, safe=SAFE_IN_KEY)}" if self.key else ""
        return f"{self.scheme}://{self.host}{path}" + (f"?{self.query}" if self.query else "")

    @property
    def name(self) -> str:
        """The last part of the key; of a bucket, its name."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Uri":
        """The folder that this is in; a bucket is its own."""
        return replace(self, key=self.key.rpartition("/")[0])

    def __truediv__(self, name: str) -> "Uri":
        """Return what has this name, or relative path, in this folder."""
        return replace(self, key=_key(self.key + "/" + name, str(self)))

    @property
    def path(self) -> str:
        """The path by which the file system knows it."""
        if self.scheme in ("hdfs", "viewfs"):
            return f"/{self.key}"
        user, _, machine = self.host.rpartition("@")
        container = user if user and self.scheme in ("abfs", "abfss") else machine
        return f"{container}/{self.key}".rstrip("/")


def parse(text: str) -> Path | Uri:
    """Return the absolute local path or the URI that ``text`` means.

    Raises:
        StorageError: an unknown scheme, no bucket, credentials inside.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _local(text)
    scheme = scheme.lower()
    if scheme == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise StorageError(f"{text}: a file URI names no other machine; write file:///path, or mount {host} first")
        return _local("/" + unquote(path))
    if scheme not in SCHEMES:
        known = ("file", *SCHEMES)
        raise StorageError(
            f"{scheme}://: no such kind of storage{did_you_mean(scheme, known)}; use a local path or one of"
            f" {', '.join(f'{name}://' for name in known)}"
        )
    rest, _, query = rest.partition("?")
    host, _, path = rest.partition("/")
    _refuse_secrets(scheme, host, query)
    if not host:
        raise StorageError(f"{text}: no bucket; write {scheme}://BUCKET/PATH")
    return Uri(scheme, host, _key(unquote(path), text), urlencode(parse_qsl(query, keep_blank_values=True)))


def _key(path: str, text: str) -> str:
    parts = [part for part in path.split("/") if part]
    if {".", ".."} & set(parts):
        raise StorageError(f"{text}: an object store has no '.' or '..'; write the path out")
    return "/".join(parts)


def _local(text: str) -> Path:
    typo = re.match(rf"({'|'.join(SCHEMES)}|file):/?", text)
    if typo:
        raise StorageError(
            f"{text}: a URI has two slashes after its scheme; write {typo[1]}://…, or ./{text} for a local file"
        )
    if not text:
        raise StorageError("the place is an empty string; give a path or a URI")
    return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() would follow links


def _refuse_secrets(scheme: str, host: str, query: str) -> None:
    """Refuse what would be copied into run files and logs; the message does not repeat it."""
    user, at, _ = host.rpartition("@")
    names = scheme in ("hdfs", "abfs", "abfss") and ":" not in user  # a user, a container
    allowed = names or (scheme in ("gs", "gcs") and user == "anonymous")
    if (at and not allowed) or any(SECRET.search(name) for name, _ in parse_qsl(query, keep_blank_values=True)):
        raise StorageError(
            f"{scheme}://…: credentials inside a URI would land in run files and logs; put them into the environment"
            " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS)"
        )
