"""The words of a job: what `shoal train` or `tune` is to be told on the cluster, looked at here as far as that goes."""

import re
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from shoal.config import parse_override, read_config
from shoal.errors import ConfigError, did_you_mean
from shoal.objectives import load_plugin
from shoal.storage.location import Location
from shoal_ray.submission.tree import Tree

COMMANDS = ("train", "tune")
FILES = (".yaml", ".yml", ".py")


@dataclass(frozen=True)
class Words:
    """A command for the cluster.

    Attributes:
        command: ``train`` or ``tune``.
        argv: its words, to be quoted, never interpolated.
        place: where its run is, as every node sees it: an absolute path or a URI in its normal form.
        resume: whether it goes on with a run.
    """

    command: str
    argv: tuple[str, ...]
    place: str
    resume: bool

    @property
    def name(self) -> str:
        """The last part of the run's place."""
        return Location.parse(self.place).name

    @property
    def again(self) -> tuple[str, ...]:
        """The words that go on with it."""
        return (self.command, "--resume", "--out", self.place)

    def checking(self) -> tuple[str, ...]:
        """Return the words that only ask whether it could train."""
        return (self.command, "--check", *self.argv[1:])


def understand(words: Sequence[str], commands: TyperGroup) -> tuple[Words, dict[str, Any]]:
    """Parse the words of a job as its command will; return them, and its parameters.

    The job is told ``--address auto``: without it, it would start a cluster of its own beside the one it is on.

    Raises:
        ConfigError: another command, or a place that a job cannot use.
        typer's UsageError: an option that the command does not have.
    """
    if not words or words[0] not in COMMANDS:
        what = f"'{words[0]}' is no job{did_you_mean(words[0], COMMANDS)}" if words else "no job given"
        raise ConfigError(f"{what}; after -- say train or tune, as on one machine, e.g. -- train vae --data s3://…")
    command, *rest = words
    given = commands.commands[command].make_context(f"shoal {command}", list(rest)).params
    if given.get("local") or given.get("check"):
        flag = "--local" if given.get("local") else "--check"
        raise ConfigError(f"{flag} does not go with a job, which trains on the cluster it is sent to; leave it out")
    if given["address"] not in (None, "auto"):
        raise ConfigError(
            f"--address {given['address']} after --: a job trains on the cluster that it is sent to; leave it out,"
            " and give `shoal submit --address` the cluster"
        )
    if given["out"] is None:
        raise ConfigError(
            "no --out given: the folder that a job runs in goes with it; name a run on storage that every node sees,"
            f" e.g. -- {command} … --out s3://bucket/runs/NAME, or /mnt/shared/runs/NAME"
        )
    place = _lasting("--out", given["out"])
    if given["data"] is not None:
        _lasting("--data", given["data"])
    address = () if given["address"] else ("--address", "auto")
    return Words(command, (command, *address, *rest), place, bool(given["resume"])), given


def check(words: Words, given: dict[str, Any], tree: Tree) -> None:
    """Refuse what can be seen to be wrong without the cluster: keys and values, and files that do not go along.

    Raises:
        ConfigError: a key, a value, or a file.
    """
    from shoal_ray.cli.train import split_words

    name, overrides = split_words(given["words"] or [])
    files = [text for text in (name, given["plugin"]) if text is not None and Path(text).suffix in FILES]
    with chdir(tree.root):
        for file in map(Path, files):
            _goes_along(file, tree)
        if given["plugin"] is not None and Path(given["plugin"]).is_file():
            load_plugin(Path(given["plugin"]))
        if name is None:
            for override in overrides:
                parse_override(override)
        elif Path(name).suffix in FILES and not Path(name).is_file():
            pass  # at an absolute path of the cluster's, which will tell
        elif words.command == "train":
            read_config(name, overrides)
        else:
            from shoal_ray.population.search_config import read_search

            population = [f"population={given['population']}"] if given["population"] else []
            read_search(name, [*overrides, *population])


def _lasting(flag: str, text: str) -> str:
    """Return a place in its normal form; refuse one in the folder that goes with the job.

    Raises:
        ConfigError: a relative path.
        StorageError: no place at all.
    """
    if re.match(r"[A-Za-z0-9+.-]+:/", text):
        return str(Location.parse(text))
    if text.startswith("~"):
        return text  # the home of whoever runs the cluster
    if not Path(text).is_absolute():
        raise ConfigError(
            f"{flag} {text} is a path below this folder, of which a job gets a copy that goes with it; give an absolute"
            " path that every node sees, or a URI such as s3://bucket/…"
        )
    return str(Location.parse(text))


def _goes_along(file: Path, tree: Tree) -> None:
    if file.is_absolute():
        if file.is_relative_to(tree.root):
            raise ConfigError(
                f"{file} is a path of this machine; name it as seen from {tree.root}, which is what the job gets:"
                f" {file.relative_to(tree.root)}"
            )
        return
    if str(file) not in tree.files:
        why = "an ignore file leaves it out" if file.is_file() else "there is no such file"
        raise ConfigError(
            f"{file} is not among the files of {tree.root} that go along: {why}; mend .gitignore or .rayignore, or the"
            " name"
        )
