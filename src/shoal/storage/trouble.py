"""What a store's errors mean to the user: which place, what the store said, what to do."""

import re

from shoal.errors import MissingError, ShoalError, StorageError
from shoal.storage.retry import in_short, may_pass
from shoal.storage.uri import Uri

NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|specified bucket does not exist|Bucket '[^']*' not found")
REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE|EXPIRED|UNRECOGNIZED_CLIENT|AUTHENTICATION|CLIENT_TOKEN"
    r"|HTTP status 40[13]|InvalidToken|InvalidAccessKeyId|PERMISSION_DENIED|UNAUTHENTICATED"
)
ELSEWHERE = re.compile(r"HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed")
LOGIN = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in this process's environment, and what that"
    " user may do",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "abfs": "AZURE_STORAGE_KEY or `az login`",
}
ENDPOINT = {"s3": ", and the endpoint (AWS_ENDPOINT_URL, or ?endpoint_override=HOST:PORT&scheme=http in the URI)"}


def explained(error: Exception, uri: Uri) -> ShoalError:
    """Return a store's error as one for the user."""
    if isinstance(error, ShoalError):
        return error
    said, text, kind = in_short(error), str(error), {"gcs": "gs", "abfss": "abfs"}.get(uri.scheme, uri.scheme)
    if NO_BUCKET.search(text):
        return no_bucket(uri)
    if isinstance(error, FileNotFoundError):
        return no_object(uri)
    if isinstance(error, PermissionError) or REFUSED.search(text):
        return StorageError(f"{uri}: the store refuses it: {said}; check {LOGIN.get(kind, 'the credentials')}")
    if ELSEWHERE.search(text):
        return StorageError(f"{uri}: the bucket is in another region: {said}; add ?region=… to the URI")
    if may_pass(error):
        return StorageError(f"{uri}: storage does not answer: {said}; check the network{ENDPOINT.get(kind, '')}")
    return StorageError(f"{uri}: {said}; check the URI")


def no_bucket(uri: Uri) -> MissingError:
    """Return the error for a bucket that does not exist."""
    return MissingError(
        f"{uri}: no such bucket {uri.host!r}; create it, or check its name{ENDPOINT.get(uri.scheme, '')}"
    )


def no_object(uri: Uri) -> MissingError:
    """Return the error for an object that does not exist."""
    return MissingError(f"{uri}: no such object; check the path")
