"""What kind of thing each part of a launcher's file is that is read here; Ray's schema leaves some of it open."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Place = tuple[str | int, ...]

MAPPING, LIST, TEXT = "a mapping", "a list", "text"
KINDS: dict[str, type] = {MAPPING: dict, LIST: list, TEXT: str}

SHAPES: dict[tuple[str, ...], tuple[str, str]] = {
    ("provider",): (MAPPING, "give its type, and head_ip and worker_ips under it"),
    ("provider", "type"): (TEXT, "name it, e.g. local"),
    ("provider", "head_ip"): (TEXT, "give the head's address"),
    ("provider", "worker_ips"): (LIST, "list the workers' addresses; [] where there is only the head"),
    ("auth",): (MAPPING, "give ssh_user and ssh_private_key under it"),
    ("auth", "ssh_user"): (TEXT, "name the user that ssh logs in as"),
    ("auth", "ssh_private_key"): (TEXT, "give its path, e.g. ~/.ssh/id_ed25519, or leave the line out"),
    ("auth", "ssh_proxy_command"): (TEXT, "give a command, or leave the line out"),
    ("file_mounts",): (MAPPING, "give `where there: where here` on lines under it"),
    ("head_start_ray_commands",): (LIST, "put each command on a line of its own, after a dash"),
    ("worker_start_ray_commands",): (LIST, "put each command on a line of its own, after a dash"),
}
"""What each part is, where it is there at all, and what to write."""

PARTS = {("provider", "worker_ips"): TEXT, ("file_mounts",): TEXT}
"""What the parts of a list, or the values of a mapping, are."""


def slips(content: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Yield where something is of another kind, and what to say of it: value, rule and remedy."""
    for place, (kind, remedy) in SHAPES.items():
        around: Any = content
        for key in place[:-1]:
            around = around.get(key, {}) if isinstance(around, dict) else {}
        if not isinstance(around, dict) or place[-1] not in around:
            continue
        found = around[place[-1]]
        if not isinstance(found, KINDS[kind]):
            yield place, f"{'.'.join(place)} {_shown(found)}, and has to be {kind}; {remedy}"
        elif part_kind := PARTS.get(place):
            for name, part in _parts(found):
                if not isinstance(part, KINDS[part_kind]):
                    yield (
                        (*place, name),
                        f"{'.'.join(place)}: {name} {_shown(part)}, and has to be {part_kind}; {remedy}",
                    )


def _parts(found: Any) -> Iterable[tuple[str | int, Any]]:
    return found.items() if isinstance(found, dict) else enumerate(found)


def _shown(value: object) -> str:
    return "is empty" if value is None else f"is {value!r}"
