"""Which files of a folder a job takes along: all but those that ignore files name, and not too many."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from shoal.errors import ConfigError

MIB = 2**20
LIMIT_BYTES = 100 * MIB
"""Of one upload: the cluster keeps it in its head's memory, and every node unpacks it."""

IGNORE_FILES = (".gitignore", ".rayignore")
NEVER = (".git", ".hg/", ".svn/", ".venv/", "venv/", "__pycache__/", "*.pyc", ".*_cache/", ".DS_Store")
"""What no job needs, whether or not an ignore file says so."""

_NEVER = GitIgnoreSpec.from_lines(NEVER)

NAMED = 5
"""So many of the biggest files and folders are named."""

NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Tree:
    """The files that go along.

    Attributes:
        root: the folder.
        files: their sizes in bytes by path below it, in order.
    """

    root: Path
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """How much they are together."""
        return sum(self.files.values())

    @property
    def is_checkout(self) -> bool:
        """Whether Shoal itself is among them, which then comes before an installed one."""
        return {"src/shoal/__init__.py", "distributed/shoal_ray/__init__.py"} <= self.files.keys()

    def __str__(self) -> str:
        """Return how much that is, in words."""
        return f"{len(self.files):,} file(s), {self.bytes / MIB:,.1f} MiB, of {self.root}"


def gather(root: Path) -> Tree:
    """Find the files below ``root`` that are to be uploaded, by the rules of git; ``.rayignore`` follows them too.

    Links are followed, unless they lead back to a folder that they are in.

    Raises:
        ConfigError: no such folder, a file that cannot be sent, or more than ``LIMIT_BYTES``; names the biggest.
    """
    if not root.is_dir():
        raise ConfigError(f"--working-dir {root} is not a folder; give the one that the job needs")
    root = root.resolve()
    try:
        tree = Tree(root, dict(sorted(_walk(root, "", [], []))))
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}; mend its permissions, or name it in .rayignore"
        ) from None
    if tree.bytes > LIMIT_BYTES:
        raise ConfigError(_too_large(tree))
    return tree


@dataclass(frozen=True)
class _Rules:
    """The ignore files of one folder, named by its path below the root; of each kind one, perhaps empty."""

    folder: str
    specs: tuple[GitIgnoreSpec, ...]

    def verdict(self, kind: int, path: str) -> bool | None:
        """Tell whether a path is excluded, or taken back in; None where no line names it."""
        return self.specs[kind].check_file(path.removeprefix(self.folder)).include


def _walk(folder: Path, name: str, rules: list[_Rules], above: list[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    own = _Rules(name, tuple(GitIgnoreSpec.from_lines(_lines(folder / file)) for file in IGNORE_FILES))
    rules, above = [*rules, own], [*above, identity]
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        path = name + entry.name
        is_folder = entry.is_dir()
        if _is_ignored(path + "/" if is_folder else path, rules):
            continue
        if not path.isprintable():  # nor could it be packed, were it not even Unicode
            raise ConfigError(f"{path!a} is no name for a file that is sent; rename it, or name it in .rayignore")
        if is_folder:
            yield from _walk(Path(entry.path), path + "/", rules, above)
        elif entry.is_file():
            yield path, entry.stat().st_size


def _lines(file: Path) -> list[str]:
    return file.read_text(errors="surrogateescape").splitlines() if file.is_file() else []


def _is_ignored(path: str, rules: list[_Rules]) -> bool:
    """Tell whether any kind of ignore file excludes a path; of one kind, the innermost that names it decides."""
    if _NEVER.match_file(path):
        return True
    for kind in range(len(IGNORE_FILES)):
        verdicts = (folder.verdict(kind, path) for folder in reversed(rules))
        if next((verdict for verdict in verdicts if verdict is not None), False):
            return True
    return False


def _too_large(tree: Tree) -> str:
    folders: dict[str, int] = defaultdict(int)
    for path, size in tree.files.items():
        for parent in list(PurePosixPath(path).parents)[:-1]:
            folders[f"{parent}/"] += size
    # Of folders in each other the one that says most: not the outer one, where nearly all of it is one inner one.
    telling = dict(folders)
    for name, size in folders.items():
        outer = f"{PurePosixPath(name).parent}/"
        if outer in telling and size > NEARLY_ALL * folders[outer]:
            del telling[outer]
    lines = [
        f"  {size / MIB:8,.1f} MiB  {name}"
        for sizes in (telling, tree.files)
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:NAMED]
    ]
    return (
        f"{tree}, is more than the {LIMIT_BYTES / MIB:.0f} MiB that a job may bring along. The biggest folders and"
        " files:\n" + "\n".join(lines) + "\nName what the job does not need in .rayignore or .gitignore, or give"
        " --working-dir a smaller folder. Data sets and runs belong on storage that every node sees"
    )
