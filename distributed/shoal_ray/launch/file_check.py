"""A look at a launcher's file alone: Ray's schema, what was not filled in, and what it names on this machine."""

import ipaddress
import logging
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]  # has no types of its own
from ray.autoscaler._private.util import prepare_config, validate_config

from shoal.errors import did_you_mean
from shoal_ray.launch.cluster_file import ClusterFile, Key
from shoal_ray.launch.findings import Finding

DOCUMENTATION = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
"""Addresses that belong to nobody, RFC 5737."""

LEFT_OPEN = re.compile(r"ami-0{17}|\b(?:111122223333|123456789012)\b|\bYOUR[-_A-Z]+\b")
"""What stands for an image, an account or a name of the reader's own in examples of Amazon's and ours."""

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
TOKEN = Path("~/.ray/auth_token")


def check_file(file: ClusterFile) -> Iterator[Finding]:
    """Look at all that the file alone can tell; paths in it that are relative count from here, as for ``ray up``."""
    yield from _schema(file)
    yield from _left_open(file)
    yield from check_login(file)
    yield from _counts(file)
    yield from _mounts(file)
    yield from _token(file)


def check_login(file: ClusterFile) -> Iterator[Finding]:
    """Look at what it takes to log in to the machines that a file lists; of a cloud's, at the key."""
    if file.local:
        yield from _provider(file)
        yield from _addresses(file)
        yield from _login(file)
    yield from _key(file)


def _provider(file: ClusterFile) -> Iterator[Finding]:
    if missing := [key for key in ("head_ip", "worker_ips") if key not in file.provider]:
        yield _missing(file, "provider", f"no {' and no '.join(missing)}", "list the machines", "provider")


def _schema(file: ClusterFile) -> Iterator[Finding]:
    if file.local and not {"head_ip", "worker_ips"} <= file.provider.keys():
        return  # Ray's own preparation ends the process over that
    try:
        with _silence():
            validate_config(prepare_config(file.content))
    except jsonschema.ValidationError as error:
        yield _schema_error(file, error)
    except (
        ValueError,
        NotImplementedError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        click.ClickException,
    ) as error:
        place = ("provider", "type") if isinstance(error, NotImplementedError) else ()
        yield _missing(
            file, "schema", str(error) or type(error).__name__, "see Ray's reference of launcher files", *place
        )
    else:
        yield Finding(file.path.name, "schema", "Ray accepts it")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Ray's remarks, on single files among file_mounts and the like, out of what is printed."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _schema_error(file: ClusterFile, error: jsonschema.ValidationError) -> Finding:
    path: list[Key] = list(error.absolute_path)
    remedy = "see Ray's reference of launcher files"
    known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        strange = sorted(error.instance.keys() - known)
        path, remedy = [*path, strange[0]], f"take it out, or mend its name{did_you_mean(strange[0], known)}"
    return _missing(file, "schema", error.message, remedy, *path)


def _left_open(file: ClusterFile) -> Iterator[Finding]:
    for path, value in _texts(file.content):
        if found := LEFT_OPEN.search(value):
            yield _missing(file, "to be filled in", found[0], "put in your own; the comment above it says which", *path)


def _texts(content: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], str]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _texts(value, (*path, index))
    elif isinstance(content, str):
        yield path, content


def _addresses(file: ClusterFile) -> Iterator[Finding]:
    places: list[tuple[Key, ...]] = [("provider", "head_ip")]
    places += [("provider", "worker_ips", index) for index in range(len(file.addresses) - 1)]
    times = Counter(file.addresses)
    good = True
    for place, address in zip(places, file.addresses, strict=False):
        why = "given twice; name each machine once" if times[address] > 1 else _unfit(address)
        if why:
            good = False
            found, _, remedy = why.partition("; ")
            yield _missing(file, "address", f"{address}: {found}", remedy, *place)
    if good and file.addresses:
        yield Finding(file.where("provider"), "addresses", f"a head and {len(file.addresses) - 1} workers")


def _unfit(address: str) -> str:
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return "" if HOST_NAME.fullmatch(address) else "neither an address nor a name; give one that ssh can reach"
    if any(number in net for net in DOCUMENTATION if number.version == 4):
        return "stands for an address of yours; put that in"
    if number.is_loopback or number.is_unspecified:
        return "leads nowhere from another machine; give the one that the others reach it by"
    return ""


def _counts(file: ClusterFile) -> Iterator[Finding]:
    if not file.local:
        return
    workers = len(file.addresses) - 1
    for key in ("min_workers", "max_workers"):
        if file.content.get(key, workers) != workers:
            found = f"{file.content[key]}, but {workers} worker_ips"
            yield _missing(file, key, found, f"say {workers}, or leave the line out", key)


def _login(file: ClusterFile) -> Iterator[Finding]:
    user = file.auth.get("ssh_user")
    if user is None or not USER_NAME.fullmatch(user):
        found = "none" if user is None else f"{user!r} is no user's name"
        yield _missing(file, "ssh user", found, "name the user that ssh logs in as", "auth", "ssh_user")


def _key(file: ClusterFile) -> Iterator[Finding]:
    given = file.auth.get("ssh_private_key")
    if given is None:
        return
    yield _secret(file, "ssh key", Path(given), "ssh-keygen -t ed25519", ("auth", "ssh_private_key"), b"PRIVATE KEY")


def _secret(file: ClusterFile, what: str, path: Path, maker: str, place: tuple[Key, ...], holds: bytes) -> Finding:
    try:
        here = path.expanduser()
        mode, content = here.stat().st_mode, here.read_bytes()
    except OSError as error:
        remedy = (
            f"make it: {maker}; or name another" if isinstance(error, FileNotFoundError) else "mend its permissions"
        )
        return _missing(file, what, f"{path}: {error.strerror}", remedy, *place)
    except (RuntimeError, ValueError) as error:  # ~ of a user that there is not; a character that no path has
        return _missing(file, what, f"{str(path)!r}: {error}", "give a path that there is", *place)
    if stat.S_IMODE(mode) & 0o077:
        found = f"{path}: mode {stat.S_IMODE(mode):o}, others may read it"
        return _missing(file, what, found, f"chmod 600 {path}", *place)
    if not content.strip() or holds not in content:
        found = "empty" if not content.strip() else "no private key (its other half, .pub?)"
        return _missing(file, what, f"{path}: {found}", f"make it: {maker}; or name another", *place)
    return Finding(file.where(*place), what, str(path))


def _mounts(file: ClusterFile) -> Iterator[Finding]:
    mounts = file.mounts
    lost = {there: here for there, here in mounts.items() if not _exists(Path(here))}
    lost = {there: here for there, here in lost.items() if Path(here) != TOKEN}  # is looked at on its own
    for there, here in lost.items():
        remedy = "make it, take it out, or go to the folder that it is in: paths count from where you are"
        yield _missing(file, "file mount", f"{here}: not there", remedy, "file_mounts", there)
    if mounts and not lost:
        yield Finding(file.where("file_mounts"), "file mounts", f"{len(mounts)}, all there")


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):  # no permission to look; ~ of a user that there is not
        return False


def _token(file: ClusterFile) -> Iterator[Finding]:
    open_to_all = False
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for index, command in enumerate(file.content.get(key, [])):
            if re.search(r"\bray start\b", str(command)) and "RAY_AUTH_MODE=token" not in str(command):
                open_to_all = True
                found = "no RAY_AUTH_MODE=token: whoever reaches a port of Ray may run code"
                yield _missing(file, "token", found, "put it before `ray start`", key, index)
    brought = [there for there, here in file.mounts.items() if Path(here) == TOKEN]
    maker = f"ray get-auth-token --generate && chmod 600 {TOKEN}"
    if brought:
        yield _secret(file, "token", TOKEN, maker, ("file_mounts", brought[0]), b"")
    elif not open_to_all:
        remedy = f"add `{TOKEN}: {TOKEN}` to file_mounts"
        yield _missing(file, "token", "no file_mounts entry brings it to the machines", remedy, "file_mounts")


def _missing(file: ClusterFile, what: str, found: str, remedy: str, *place: Key) -> Finding:
    return Finding(file.where(*place), what, found, good=False, remedy=remedy)
