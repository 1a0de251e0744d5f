"""The working tree in one file, the same bytes whenever its content is the same."""

import hashlib
import stat
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from shoal.errors import ConfigError
from shoal_ray.submission.environment import SECRETS
from shoal_ray.submission.tree import Tree

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every file: the earliest that a zip file knows."""


def pack(tree: Tree, secrets: bytes | None = None) -> tuple[str, bytes]:
    """Return the name of a package, by which Ray knows its content, and the package.

    Raises:
        ConfigError: a file cannot be read.
    """
    buffer = BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for name in tree.files:
            path = tree.root / name
            try:
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                _add(archive, name, path.read_bytes(), mode)
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}; mend it, or name it in .rayignore") from None
        if secrets is not None:
            _add(archive, SECRETS, secrets, 0o600)
    content = buffer.getvalue()
    return f"_ray_pkg_{hashlib.sha1(content, usedforsecurity=False).hexdigest()}.zip", content


def _add(archive: ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = ZipInfo(name, EPOCH)
    entry.external_attr = (stat.S_IFREG | mode) << 16  # Ray unpacks it with these permissions
    entry.compress_type = ZIP_DEFLATED
    archive.writestr(entry, content)
