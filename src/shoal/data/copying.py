"""Copy a data set from anywhere to anywhere; every file is compared with the manifest on its way."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import xxhash

from shoal.data.importers.record import RECORD_NAME
from shoal.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from shoal.data.second_look import until_right
from shoal.errors import DataError, MissingError
from shoal.files import atomic_directory
from shoal.storage.location import Location

FILES_AT_ONCE = 4
PIECE_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Called with the number of bytes done so far and that of all."""


def copy(source: str | Path | Location, dest: str | Path | Location, *, progress: Progress | None = None) -> Manifest:
    """Copy the data set ``source`` to ``dest``, where it appears when it is whole: each may be a directory or a URI.

    In an object store the manifest is written last; what a killed copy left there is written anew.

    Raises:
        DataError: ``dest`` holds something, or a file of ``source`` is not what its manifest says.
        StorageError: a store refuses, or does not answer.
    """
    source, dest = Location.parse(source), Location.parse(dest)
    manifest = load_manifest(source)
    if (dest / MANIFEST_NAME).exists() or (dest.local is not None and dest.exists() and dest.list()):
        raise DataError(f"{dest} exists already and is never overwritten; choose another place, or delete it first")
    checksums = {shard.path: shard.xxh3 for shard in manifest.shards}
    if manifest.labels is not None:
        checksums[manifest.labels.path] = manifest.labels.xxh3
    sizes = manifest.file_sizes()
    done = 0

    def right(name: str) -> Path:
        target = folder / name
        try:
            if source.local is None:
                (source / name).download(target)
            elif dest.local is not None:
                shutil.copyfile(source.local / name, target)
            path = target if target.exists() else (source.local or folder) / name
            found = _digest(path)
        except (MissingError, FileNotFoundError):
            raise DataError(f"{source / name} is missing; `shoal data repair {source}` mends it") from None
        if found != checksums[name]:
            raise DataError(
                f"{source / name} has xxh3 {found} where the manifest says {checksums[name]}: it is damaged;"
                f" `shoal data repair {source}` mends it"
            )
        return path

    def bring(name: str) -> int:
        path = until_right(lambda again: right(name), remote=source.local is None)
        if dest.local is None:
            (dest / name).upload(path)
            (folder / name).unlink(missing_ok=True)  # or the data set would have to fit on this disk
        return sizes[name]

    with _workplace(dest) as folder:
        with ThreadPoolExecutor(FILES_AT_ONCE, "shoal-copy") as pool:
            try:
                for num_bytes in pool.map(bring, checksums):
                    done += num_bytes
                    if progress is not None:
                        progress(done, sum(sizes.values()))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for name in (RECORD_NAME, MANIFEST_NAME):
            try:
                content = (source / name).read_bytes()
            except MissingError:
                continue  # a record need not be there
            if name == MANIFEST_NAME:
                content = manifest.to_json().encode()  # as it was checked: a store may cut a file short unnoticed
            if dest.local is None:
                (dest / name).write_bytes(content)
            else:
                (folder / name).write_bytes(content)
    return manifest


@contextmanager
def _workplace(dest: Location) -> Iterator[Path]:
    """Yield the folder that becomes ``dest``, or one for what is only passing through."""
    if dest.local is not None:
        with atomic_directory(dest.local) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="shoal-copy-") as name:
            yield Path(name)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
