"""Extractors on disk: a directory each, beside the data set that they were made for.

``DATA/extractors/<kind>-<hash>/`` holds ``extractor.json`` and ``weights.safetensors``, whole or not at all. Nothing in
it can run code when it is read.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from shoal.data import DataSet
from shoal.errors import DataError, did_you_mean
from shoal.files import atomic_directory
from shoal.quality.cnn import build_net
from shoal.quality.extractor import (
    KINDS,
    Extractor,
    ExtractorFacts,
    digest,
    num_outputs,
    random_extractor,
    refuse_other_data,
)

FOLDER, FACTS, WEIGHTS = "extractors", "extractor.json", "weights.safetensors"
FORMAT_VERSION = 1
"""Read: this and every older one. A newer one is refused by name."""


def keep(extractor: Extractor, data: DataSet) -> Path:
    """Write an extractor beside its data set, whole or not at all; return its directory."""
    path = data.path / FOLDER / extractor.facts.directory_name
    if path.exists():  # the same weights, unless they were damaged
        try:
            read(path, data)
            return path
        except DataError:
            shutil.rmtree(path)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in extractor.net.state_dict().items()}
    with atomic_directory(path) as folder:
        (folder / WEIGHTS).write_bytes(save(tensors))
        (folder / FACTS).write_text(json.dumps({"version": FORMAT_VERSION, **asdict(extractor.facts)}, indent=1) + "\n")
    return path


def read(path: Path, data: DataSet) -> Extractor:
    """Load an extractor for a data set.

    Raises:
        DataError: none there, damaged, of a newer format, or made for another data set or shape.
    """
    facts = read_facts(path)
    refuse_other_data(facts, data)
    assert facts.shape is not None
    net = build_net(facts.shape, num_outputs(facts.kind, facts.num_classes), seed=0)
    try:
        tensors = load((path / WEIGHTS).read_bytes())
        if digest(tensors) != facts.hash:
            raise ValueError(f"its weights have the hash {digest(tensors)}, not {facts.hash}")
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    return Extractor(net, facts)


def read_facts(path: Path) -> ExtractorFacts:
    """Read what an extractor's directory says of it.

    Raises:
        DataError: none there, damaged, or of a newer format.
    """
    if not (path / FACTS).is_file():
        raise DataError(f"{path} is no extractor (no {FACTS} in it); make one with `shoal extractor train --data DIR`")
    try:
        values = json.loads((path / FACTS).read_text())
        if values.pop("version") > FORMAT_VERSION:
            raise DataError(f"{path} was made by a newer Shoal, which this one cannot read; upgrade it")
        facts = ExtractorFacts(**{field.name: values[field.name] for field in fields(ExtractorFacts)})
        if facts.kind not in KINDS:
            raise ValueError(f"no kind '{facts.kind}'")
        channels, height, width = values["shape"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, error) from None
    return replace(facts, shape=(channels, height, width))


def kept(data: DataSet) -> list[tuple[Path, ExtractorFacts]]:
    """Return the readable extractors beside a data set, the better kinds first, then by seed."""
    found = []
    for path in (data.path / FOLDER).glob("*-*"):
        try:
            found.append((path, read_facts(path)))
        except DataError:
            continue
    return sorted(found, key=lambda item: (KINDS.index(item[1].kind), item[1].seed or 0, item[1].hash))


def default_extractor(data: DataSet) -> Extractor:
    """Return the classifier with the lowest seed, else the rotation network, else the random one, made now.

    Raises:
        DataError: its weights are damaged.
    """
    for path, facts in kept(data):
        try:
            refuse_other_data(facts, data)
        except DataError:
            continue
        return read(path, data)
    return random_extractor(data.shape)


def named_extractor(name: str, data: DataSet) -> Extractor:
    """Return the extractor that ``KIND-HASH``, ``KIND:HASH``, ``KIND`` (the lowest seed) or a directory's path names.

    Raises:
        DataError: none of that name, or one that does not fit the data set.
    """
    found = kept(data)
    if name in KINDS:
        of_kind = [path for path, facts in found if facts.kind == name]
        if of_kind:
            return read(of_kind[0], data)
        if name == "random":
            return random_extractor(data.shape)
    elif re.fullmatch(r"[a-z]+[-:][0-9a-f]{8}", name):
        path = data.path / FOLDER / name.replace(":", "-")
        if path.is_dir():
            return read(path, data)
        made = random_extractor(data.shape)
        if name.replace(":", "-") == made.facts.directory_name:
            return made
    elif Path(name).expanduser().is_dir():
        return read(Path(name).expanduser(), data)
    raise DataError(f"no extractor '{name}'{_alternatives(name, (facts.directory_name for _, facts in found), data)}")


def _alternatives(name: str, known: Iterable[str], data: DataSet) -> str:
    names = list(known)
    near = did_you_mean(name, [*names, *KINDS])
    beside = f"{data.path} has {', '.join(names)}" if names else f"none was made for {data.path} yet"
    return f"{near}; {beside}; make one with `shoal extractor train --data {data.path}`, or give a directory's path"


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"extractor {path} is damaged ({error}); delete it and train it again with `shoal extractor train`"
    )
