"""Import a source: units are read ahead by several processes, and put in order by this one into a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.data.dataset_writer import SHARD_BYTES, DataSetWriter, Layout, seal
from shoal.data.importers.partial import Checkpoint, Command, Partial
from shoal.data.importers.reading import ReaderLostError, reading
from shoal.data.importers.record import write_record
from shoal.data.importers.routing import Place, Router
from shoal.data.importers.source import Source
from shoal.data.importers.splitting import Shares
from shoal.data.manifest import Manifest
from shoal.data.shard_writer import Saved
from shoal.data.write import check_destination
from shoal.errors import DataError, ShoalError
from shoal.files import CANNOT_WRITE

ImportProgress = Callable[[int, int | None], None]
"""Called with the number of images done so far, and of all of them where that is known."""

Notice = Callable[[str], None]
"""Told, in a sentence, what else a user should know."""


def run_import(
    source: Source,
    out: Path | str,
    *,
    jobs: int = 1,
    limit: int | None = None,
    split: Shares | None = None,
    fresh: bool = False,
    command: Command | None = None,
    rows_per_block: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: ImportProgress | None = None,
    notice: Notice | None = None,
) -> tuple[Manifest, int]:
    """Make the data set ``out`` of a source; return its manifest and the number of images that were left out.

    The data set is the same for any number of ``jobs``: processes that read (1: this one), while this one writes. Of
    each of the source's splits the first ``limit`` rows are taken, and those of train divided by ``split``.

    Memory does not depend on the size of the source. The data set appears when all is written. An import that is killed
    or interrupted leaves ``.NAME.partial`` beside it if it got as far as a finished shard; with an equal ``command``,
    which is None for a source that cannot be told from others, it goes on from there, and with ``fresh`` that is thrown
    away. Whatever else goes wrong leaves nothing.

    Raises DataError for a destination that exists, a split without rows, rows that do not fit, an interrupted import by
    another command, a process that was killed (ReaderLostError), and what the source raises.
    """
    out = Path(out).absolute()
    check_destination(out)
    if jobs < 1:
        raise DataError(f"--jobs {jobs} must be at least 1, the number of processes that read images")
    if limit is not None and limit < 1:
        raise DataError(f"--limit {limit} must be at least 1, the number of images of each split")
    layout = Layout(
        source.shape,
        source.class_names,
        source.kind,
        source.encoded,
        rows_per_block=rows_per_block,
        shard_bytes=shard_bytes,
    )
    if split is not None:
        split.splits_of(source.splits)  # refused before anything is made
    with Partial(out, command, fresh=fresh) as partial, _kept_if_interrupted(partial, command, notice):
        last = partial.checkpoints[-1] if partial.checkpoints else None
        router = Router(source.splits, limit=limit, shares=split, place=None if last is None else last.place)
        if last is not None and notice is not None:
            notice(f"going on from the {last.num_rows:,} images that an interrupted import left in {partial.path}")
        if last is None or not last.is_done:
            total = source.num_rows if limit is None else None
            _fill(partial, source, layout, router, jobs, limit, _counter(progress, total))
        manifest = seal(partial.data, layout, router.splits, partial.shards)
        num_skipped = partial.checkpoints[-1].place.num_skipped
        write_record(partial.data, manifest.source, command, num_skipped, partial.checkpoints)
        partial.publish()
    return manifest, num_skipped


def _fill(
    partial: Partial,
    source: Source,
    layout: Layout,
    router: Router,
    jobs: int,
    limit: int | None,
    progress: Callable[[int], None],
) -> None:
    """Write all rows that are not there yet, with a checkpoint whenever a shard is finished."""
    last = partial.checkpoints[-1] if partial.checkpoints else None
    attempt = 0 if last is None else last.attempt + 1

    def wanted(name: str | None) -> bool:
        return not router.is_full(name)

    with DataSetWriter(partial.data, layout, router.splits, attempt=attempt) as writer:
        if last is not None:
            writer.restore(last.saved, partial.shards)
        progress(writer.num_rows)
        with reading(source, router.place.unit, jobs=jobs, wanted=wanted, limit=limit) as units:
            for number, rows in units:
                for part in router.route(number, rows):
                    writer.add(part.split, part.images, part.labels)
                if len(writer.shards) > len(partial.shards):
                    partial.save(Checkpoint(router.place, writer.save(), attempt), writer.shards)
                progress(writer.num_rows)
    end = Place(len(source.units), 0, router.num_skipped)
    saved = {name: Saved(num) for name, num in writer.rows_by_split.items()}
    partial.save(Checkpoint(end, saved, attempt, is_done=True), writer.shards)


def _counter(progress: ImportProgress | None, total: int | None) -> Callable[[int], None]:
    def count(done: int) -> None:
        if progress is not None:
            progress(done, total)

    return count


@contextmanager
def _kept_if_interrupted(partial: Partial, command: Command | None, notice: Notice | None) -> Iterator[None]:
    """Clear the folder away where going on would be no use, and say what is left otherwise."""
    try:
        yield
    except BaseException as error:
        mistake = isinstance(error, ShoalError) and not isinstance(error, ReaderLostError)
        full = False
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            full = True
            error.filename = error.filename or str(partial.path)
        if mistake or full or command is None or not partial.checkpoints or not partial.data.is_dir():
            partial.clear()
            raise
        kept = f"{partial.checkpoints[-1].num_rows:,} images are kept in {partial.path}"
        ways = "the same command goes on from there, --fresh starts anew"
        if isinstance(error, ReaderLostError):
            raise ReaderLostError(f"{error}; {kept}: {ways}") from None
        if notice is not None:
            notice(f"{kept}: {ways}")
        raise
