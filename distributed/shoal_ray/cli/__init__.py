"""The ``shoal`` command. Stands on top of both packages; ray is imported only by the commands that need it."""

import errno
import os
import signal
import sys
from typing import Any, NoReturn, TextIO, cast

import typer
from rich.console import Console

from shoal.errors import USER_ERROR, ShoalError, StorageError
from shoal.files import CANNOT_WRITE
from shoal_ray.cli import (
    cluster,
    compare,
    data,
    doctor,
    evaluate,
    extractor,
    jobs,
    lineage,
    results,
    runs,
    submit,
    tools,
    train,
    tune,
)

app = typer.Typer(
    name="shoal",
    help="Train autoencoders and GANs across a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(extractor.app, name="extractor")
app.add_typer(jobs.app, name="jobs")
app.add_typer(cluster.app, name="cluster")
for command in (train, tune, submit, evaluate, results, runs, compare, lineage, tools, doctor):
    command.register(app)

READER_GONE = 128 + signal.SIGPIPE

REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "a folder stands where a file is needed; name a file",
    errno.EEXIST: "something else is there already; give a path that is still free",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle; mend them, or give another path",
    **dict.fromkeys(CANNOT_WRITE, "mend its permissions, or give another path"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room, or write somewhere else"),
}
"""What to do about a path that the system refuses; any other trouble with files is not the user's to mend."""


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2, never a traceback."""
    stdout = sys.stdout
    sys.stdout = cast(TextIO, _Output(stdout))
    try:
        run()
    except ShoalError as error:
        fail(str(error))
    finally:
        sys.stdout = stdout


def run() -> None:
    """Run the command line in ``sys.argv``; leaves by SystemExit, as typer does.

    Raises:
        ShoalError: a user's mistake, of the system's refusals too.
    """
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, since Python complains about what it cannot flush at its end
    except OSError as error:
        path = error.filename2 or error.filename
        if error.errno not in REMEDIES or (path is None and error.errno not in CANNOT_WRITE):
            raise
        place = os.fsdecode(path) if path else "the disk"
        raise StorageError(f"{place}: {error.strerror}; {REMEDIES[error.errno]}") from error


def fail(message: str) -> None:
    """Print a user's error and leave with exit code 2."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False)
    sys.exit(USER_ERROR)


class _Output:
    """Standard output whose reader may leave, as ``head`` does: the program ends, quietly, as SIGPIPE would end it.

    At the stream, since rich and typer would each make an exit code 1 of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._leave()

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._leave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _leave(self) -> NoReturn:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # takes what is still in the buffer
        os.close(nowhere)
        sys.exit(READER_GONE)
