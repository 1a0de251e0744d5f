"""Extractors at rest: a directory each, beside the data set that they were made for, local or on an object store.

``DATA/extractors/<kind>-<hash>/`` holds ``extractor.json`` and ``weights.safetensors``, whole or not at all. Nothing in
it can run code when it is read.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from shoal.data import DataSet
from shoal.errors import DataError, MissingError, ShoalError, StorageError, did_you_mean
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
from shoal.storage.location import Location

FOLDER, FACTS, WEIGHTS = "extractors", "extractor.json", "weights.safetensors"
FORMAT_VERSION = 1
"""Read: this and every older one. A newer one is refused by name."""


def keep(extractor: Extractor, data: DataSet) -> Location:
    """Write an extractor beside its data set, whole or not at all; return its directory."""
    place = data.location / FOLDER / extractor.facts.directory_name
    if place.exists():  # the same weights, unless they were damaged
        try:
            read(place, data)
            return place
        except DataError:
            place.delete()
    weights = save({name: tensor.cpu().contiguous() for name, tensor in extractor.net.state_dict().items()})
    facts = json.dumps({"version": FORMAT_VERSION, **asdict(extractor.facts)}, indent=1) + "\n"
    if place.local is None:
        (place / WEIGHTS).write_bytes(weights)
        (place / FACTS).write_bytes(facts.encode())  # last: it is what makes an extractor of what is there
        return place
    with atomic_directory(place.local) as folder:
        (folder / WEIGHTS).write_bytes(weights)
        (folder / FACTS).write_text(facts)
    return place


def read(path: str | Path | Location, data: DataSet) -> Extractor:
    """Load an extractor for a data set.

    Raises:
        DataError: none there, damaged, of a newer format, or made for another data set or shape.
    """
    place = Location.parse(path)
    facts = read_facts(place)
    refuse_other_data(facts, data)
    assert facts.shape is not None
    net = build_net(facts.shape, num_outputs(facts.kind, facts.num_classes), seed=0)
    try:
        tensors = load((place / WEIGHTS).read_bytes())
        if digest(tensors) != facts.hash:
            raise ValueError(f"its weights have the hash {digest(tensors)}, not {facts.hash}")
        net.load_state_dict(tensors)
    except (SafetensorError, ValueError, RuntimeError) as error:
        if isinstance(error, StorageError) and not isinstance(error, MissingError):
            raise
        raise _damaged(place, error) from None
    return Extractor(net, facts)


def read_facts(path: str | Path | Location) -> ExtractorFacts:
    """Read what an extractor's directory says of it.

    Raises:
        DataError: none there, damaged, or of a newer format.
    """
    place = Location.parse(path)
    facts_file = place / FACTS
    if not facts_file.exists():
        raise DataError(f"{place} is no extractor (no {FACTS} in it); make one with `shoal extractor train --data DIR`")
    try:
        values = json.loads(facts_file.read_bytes())
        if values.pop("version") > FORMAT_VERSION:
            raise DataError(f"{place} was made by a newer Shoal, which this one cannot read; upgrade it")
        facts = ExtractorFacts(**{field.name: values[field.name] for field in fields(ExtractorFacts)})
        if facts.kind not in KINDS:
            raise ValueError(f"no kind '{facts.kind}'")
        channels, height, width = values["shape"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ShoalError):
            raise
        raise _damaged(place, error) from None
    return replace(facts, shape=(channels, height, width))


def kept(data: DataSet) -> list[tuple[Location, ExtractorFacts]]:
    """Return the readable extractors beside a data set, the better kinds first, then by seed."""
    found = []
    for place in (data.location / FOLDER).list():
        try:
            found.append((place, read_facts(place)))
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
        place = data.location / FOLDER / name.replace(":", "-")
        if place.exists():
            return read(place, data)
        made = random_extractor(data.shape)
        if name.replace(":", "-") == made.facts.directory_name:
            return made
    elif Path(name).expanduser().is_dir():
        return read(Path(name).expanduser(), data)
    raise DataError(f"no extractor '{name}'{_alternatives(name, (facts.directory_name for _, facts in found), data)}")


def _alternatives(name: str, known: Iterable[str], data: DataSet) -> str:
    names = list(known)
    near = did_you_mean(name, [*names, *KINDS])
    beside = f"{data.location} has {', '.join(names)}" if names else f"none was made for {data.location} yet"
    return f"{near}; {beside}; make one with `shoal extractor train --data {data.location}`, or give a directory's path"


def _damaged(place: Location, error: Exception) -> DataError:
    return DataError(
        f"extractor {place} is damaged ({error}); delete it and train it again with `shoal extractor train`"
    )
