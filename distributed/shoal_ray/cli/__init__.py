"""The ``shoal`` command. Stands on top of both packages; ray is imported only by the commands that need it."""

import sys

import typer
from rich.console import Console

from shoal.errors import ShoalError
from shoal.files import CANNOT_WRITE
from shoal_ray.cli import data, results, tools, train

app = typer.Typer(
    name="shoal",
    help="Train autoencoders and GANs across a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
for register in (train.register, results.register, tools.register):
    register(app)

USER_ERROR = 2


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except ShoalError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        fail(f"{error.filename or 'the disk'}: {error.strerror}; make room, or write somewhere else")


def fail(message: str) -> None:
    """Print a user's error and leave with exit code 2."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False)
    sys.exit(USER_ERROR)
