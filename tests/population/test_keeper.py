"""Checkpoints that are written while training goes on, and a ``best/`` that can be loaded at any time."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal import checkpoint
from shoal.data import DataSet
from shoal.model import load_model
from shoal.run import Run
from shoal.session import Session
from shoal.world import World
from shoal_ray.population.directory import KEPT_GENERATIONS, SearchDirectory
from shoal_ray.population.keeper import KEPT_BEST, Keeper

State = tuple[Mapping[str, Tensor], dict[str, Any]]


@pytest.fixture
def directory(make_search: Callable[..., SearchDirectory]) -> SearchDirectory:
    """A search of which the members have the latent sizes that they were born with."""
    return make_search()


@pytest.fixture
def train(directory: SearchDirectory) -> Callable[..., list[State]]:
    """Return ``train(member, *ends)``: a member's states at these samples."""

    def states(member: int, *ends: int) -> list[State]:
        found: list[State] = []
        config = Run.open(directory.member(member)).config
        with Session(config, directory.data, World.local("cpu")) as session:
            for end in ends:
                list(session.advance(end))
                notes = {"member": member, "seq": 0, "since": 0, "values": {}}
                found.append((session.tensors(), {**session.facts(), "notes": notes}))
        return found

    return states


def row(member: int, samples: int) -> dict[str, Any]:
    return {"member": member, "samples": samples, "metrics": {"quality/mse": 0.5}}


def names(folder: Path) -> list[int]:
    return [int(path.name) for path in checkpoint.saved(folder)]


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


def test_best_is_a_run_with_the_config_that_trained_it_whatever_the_member_becomes(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    (tensors, facts), (later, later_facts) = train(0, 20, 40)
    member = Run.open(directory.member(0))
    with closing(Keeper(directory, 0)) as keeper:
        keeper.keep(tensors, facts, best=1, row=row(0, 20))
        other = directory.member_config(0, {"nets.latent": 16, "optim.lr": 0.5}, DataSet.open(directory.data))
        assert other.nets != member.config.nets
        Run(member.path, other, member.data).save(member.data, {"member": 0})
        keeper.keep(later, later_facts, best=None, row=None)
    best = load_model(directory.best)
    assert best.config == member.config == Run.open(directory.best).config
    assert best.samples == 20
    found = Run.open(directory.best).newest_checkpoint()
    assert found is not None
    assert same(found.tensors(), tensors)
    assert json.loads((directory.best / "origin.json").read_text()) == row(0, 20)
    assert Run.open(directory.best).data == directory.data
    images = torch.full((2, 1, 28, 28), 7, dtype=torch.uint8)
    with_member = load_model(directory.member(0))
    assert with_member.samples == 40
    assert not best.reconstruct(images).equal(with_member.reconstruct(images))


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_writers_the_one_with_the_higher_number_has_the_last_word(
    directory: SearchDirectory, train: Callable[..., list[State]], first: int
) -> None:
    states = [train(member, 20)[0] for member in (0, 1)]
    keepers = [Keeper(directory, member) for member in (0, 1)]
    for member in (first, 1 - first):
        keepers[member].keep(*states[member], best=7 + member, row=row(member, 20))
        keepers[member].close()
    found = Run.open(directory.best).newest_checkpoint()
    assert found is not None
    assert int(found.path.name) == 8
    assert same(found.tensors(), states[1][0])
    assert load_model(directory.best).config == Run.open(directory.member(1)).config
    assert Run.open(directory.best).config == Run.open(directory.member(1)).config
    assert json.loads((directory.best / "origin.json").read_text()) == row(1, 20)


def test_two_writers_at_once_leave_a_best_that_loads_as_the_newest(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    states = [train(member, 20)[0] for member in (0, 1)]
    keepers = [Keeper(directory, member) for member in (0, 1)]
    for number in range(1, 11):
        for member in (0, 1) if number % 2 else (1, 0):
            keepers[member].keep(*states[member], best=2 * number + member, row=row(member, number))
    for keeper in keepers:
        keeper.close()
    found = Run.open(directory.best).newest_checkpoint()
    assert found is not None
    assert int(found.path.name) == 21
    assert same(found.tensors(), states[1][0])
    assert load_model(directory.best).config == Run.open(directory.member(1)).config
    assert json.loads((directory.best / "origin.json").read_text()) == row(1, 10)
    assert Run.open(directory.best).config == Run.open(directory.member(1)).config
    assert not list((directory.best / "checkpoints").glob(".*"))


def test_who_comes_next_says_what_the_newest_best_is_if_its_writer_was_killed_before(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    states = [train(member, 20)[0] for member in (0, 1)]
    for member, number in ((1, 8), (0, 7)):
        with closing(Keeper(directory, member)) as keeper:
            keeper.keep(*states[member], best=number, row=row(member, 20))
        if member == 1:
            for name in ("config.yaml", "environment.json", "origin.json"):
                (directory.best / name).unlink()
    assert Run.open(directory.best).config == load_model(directory.best).config
    assert Run.open(directory.best).config == Run.open(directory.member(1)).config
    assert json.loads((directory.best / "environment.json").read_text())["member"] == 1
    assert json.loads((directory.best / "origin.json").read_text()) == row(1, 20)


def test_members_keep_some_generations_and_best_some_of_the_newest(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    ends = [20 * number for number in range(1, 6)]
    with closing(Keeper(directory, 0)) as keeper:
        for number, state in enumerate(train(0, *ends), 1):
            keeper.keep(*state, best=number, row=row(0, 20 * number))
    assert names(directory.member(0) / "checkpoints") == ends[: -KEPT_GENERATIONS - 1 : -1]
    assert names(directory.best / "checkpoints") == [5, 4, 3, 2, 1][:KEPT_BEST]


def test_what_killed_writers_left_behind_harms_nothing(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    first, second = train(0, 20, 40)
    with closing(Keeper(directory, 0)) as keeper:
        keeper.keep(*first, best=1, row=row(0, 20))
    folders = [directory.member(0) / "checkpoints", directory.best / "checkpoints"]
    for folder in folders:
        whole = checkpoint.saved(folder)[0]
        # Killed while it wrote: hidden, and cut off. Killed while it deleted: set aside.
        shutil.copytree(whole, folder / f".{checkpoint.directory_name(2)}.0123abcd.tmp")
        (folder / f".{checkpoint.directory_name(3)}.4567cdef.tmp").mkdir()
    (directory.best / ".config.yaml.0123abcd.tmp").write_text("nets: {lat")
    assert load_model(directory.best).samples == 20
    with closing(Keeper(directory, 0)) as keeper:
        keeper.keep(*second, best=2, row=row(0, 40))
    assert load_model(directory.best).samples == load_model(directory.member(0)).samples == 40
    assert names(folders[1]) == [2, 1]
    assert not list(folders[0].glob(".*"))  # its own; in best/ another member may be at it


def test_a_newest_best_that_was_damaged_falls_back_to_the_one_before(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    first, second = train(0, 20, 40)
    with closing(Keeper(directory, 0)) as keeper:
        keeper.keep(*first, best=1, row=row(0, 20))
        keeper.keep(*second, best=2, row=row(0, 40))
    tensors = checkpoint.saved(directory.best / "checkpoints")[0] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert load_model(directory.best).samples == 20


def test_the_best_comes_before_the_members_own_checkpoint(
    directory: SearchDirectory, train: Callable[..., list[State]]
) -> None:
    # Killed in between, the member goes back, trains the generation again, and tells again that it is the best.
    ((tensors, facts),) = train(0, 20)
    (directory.member(0) / "checkpoints").write_text("where a folder should be")
    with pytest.raises(FileExistsError), closing(Keeper(directory, 0)) as keeper:
        keeper.keep(tensors, facts, best=1, row=row(0, 20))
    assert load_model(directory.best).samples == 20
