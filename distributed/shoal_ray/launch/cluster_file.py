"""A file of Ray's cluster launcher: its content, and the line on which each part stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from shoal.errors import ClusterError
from shoal_ray.launch.shapes import slips

Key = str | int


@dataclass(frozen=True)
class ClusterFile:
    """A launcher's file.

    Attributes:
        path: where it is.
        content: what it says.
        root: the same with the places of all parts.
    """

    path: Path
    content: dict[str, Any]
    root: yaml.MappingNode

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ClusterError: it is not YAML, gives a key twice, or a part is a list that should be text and the like; with
                the line.
            OSError: it cannot be read.
        """
        try:
            root = yaml.compose(path.read_text(), yaml.SafeLoader)
            content = yaml.safe_load(path.read_text())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            raise ClusterError(
                f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem};"
                " mend that line, or the one before it (indentation, quotes)"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ClusterError(f"{path}: not YAML: {error}; give a file of Ray's cluster launcher") from None
        if not isinstance(root, yaml.MappingNode):
            raise ClusterError(f"{path}: no mapping of keys to values; give a file of Ray's cluster launcher")
        for key, first, second in _given_twice(root):
            raise ClusterError(
                f"{path}:{second}: {key} is given on line {first} already, and only the last one would count; keep one"
            )
        file = cls(path, content, root)
        for place, said in slips(content):
            raise ClusterError(f"{file.where(*place)}: {said}")
        return file

    @property
    def provider(self) -> dict[str, Any]:
        """The provider's section; empty where there is none."""
        return dict(self.content.get("provider", {}))

    @property
    def auth(self) -> dict[str, str]:
        """The section of the login; empty where there is none."""
        return dict(self.content.get("auth", {}))

    @property
    def mounts(self) -> dict[str, str]:
        """What is brought to the machines: where it goes there, and where it is here."""
        return dict(self.content.get("file_mounts", {}))

    @property
    def local(self) -> bool:
        """Whether it lists machines of one's own."""
        return self.provider.get("type") == "local"

    @property
    def addresses(self) -> list[str]:
        """The head's address and then the workers', as they are written; of a file without them none."""
        head = [self.provider["head_ip"]] if "head_ip" in self.provider else []
        return [*head, *self.provider.get("worker_ips", [])]

    def where(self, *keys: Key) -> str:
        """Return ``file:line`` of a part, or of the innermost part around it that is there."""
        node: yaml.Node = self.root
        line = 1
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == str(key)]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                line = node.start_mark.line + 1
            else:
                break
        return f"{self.path.name}:{line}"


def _given_twice(node: yaml.Node) -> Iterator[tuple[str, int, int]]:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                yield key.value, lines[key.value], line
            yield from _given_twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _given_twice(part)
