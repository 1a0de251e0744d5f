"""Parts of splits, as rows or as hundredths: what is trained on, what is held out, and what is measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.config import RunConfig
from shoal.data import DataSet, Stream
from shoal.data.manifest import Block, Manifest, Shard, Split
from shoal.data.order import Order
from shoal.errors import ConfigError, DataError
from shoal.loop import check, train
from shoal.model import Model
from shoal.quality.evaluate import evaluate, floor_sample
from shoal.quality.held_out import held_out_split
from shoal.quality.images import Sample
from shoal.run import Run
from shoal.state import build_objective
from shoal.world import World

TRAIN, TEST = 150, 50  # rows of the data set that most of these tests read, in blocks of 16

Tiny = Callable[..., RunConfig]


def layout(before: int, rows: int, rows_per_block: int) -> DataSet:
    """Return a data set that no file stands behind: a split of so many rows, after another one."""
    shards, splits, first = [], {}, 0
    for name, num in (("before", before), ("train", rows)):
        sizes = [min(rows_per_block, num - start) for start in range(0, num, rows_per_block)]
        blocks = tuple(Block(rows=size, xxh3="0" * 16, classes=None) for size in sizes)
        shards.append(Shard(path=f"{name}.arrow", split=name, rows=num, bytes=1, xxh3="0" * 16, blocks=blocks))
        splits[name] = Split(first=first, rows=num)
        first += num
    manifest = Manifest(
        shape=(1, 1, 1),
        class_names=None,
        rows_per_block=rows_per_block,
        splits=splits,
        shards=tuple(shards),
        labels=None,
        source="test",
    )
    return DataSet(Path("nowhere"), manifest.sealed())


layouts = st.builds(layout, st.integers(1, 40), st.integers(1, 300), st.integers(1, 40))


def ids(data: DataSet, split: str) -> list[int]:
    span = data.span(split)
    return list(range(span.first, span.first + span.rows))


@st.composite
def parts(draw: st.DrawFn) -> tuple[DataSet, int, int]:
    """Draw a data set and rows start .. stop - 1 of its training split."""
    data = draw(layouts)
    start = draw(st.integers(0, data.splits["train"] - 1))
    return data, start, draw(st.integers(start + 1, data.splits["train"]))


# --- which rows ------------------------------------------------------------------------------------------------------


@given(layouts, st.integers(1, 99))
def test_two_parts_at_a_hundredth_tile_the_split(data: DataSet, percent: int) -> None:
    cut = data.splits["train"] * percent // 100
    whole, kept = ids(data, "train"), []
    for part, empty in ((f"train[:{percent}%]", cut == 0), (f"train[{percent}%:]", False)):
        if empty:
            with pytest.raises(DataError, match="has no rows"):
                data.span(part)
        else:
            kept += ids(data, part)
    assert kept == whole
    assert data.num_rows(f"train[{percent}%:]") == len(whole) - cut


@given(layouts)
def test_tenths_tile_the_split(data: DataSet) -> None:
    rows = data.splits["train"]
    bounds = [rows * tenth // 10 for tenth in range(11)]
    kept: list[int] = []
    for tenth in range(10):
        if bounds[tenth] < bounds[tenth + 1]:
            kept += ids(data, f"train[{10 * tenth}%:{10 * (tenth + 1)}%]")
    assert kept == ids(data, "train")


@given(parts())
def test_a_part_by_rows_holds_just_these(drawn: tuple[DataSet, int, int]) -> None:
    data, start, stop = drawn
    assert ids(data, f"train[{start}:{stop}]") == ids(data, "train")[start:stop]
    assert ids(data, f"train[:{stop}]") == ids(data, "train")[:stop]
    assert ids(data, f"train[{start}:]") == ids(data, "train")[start:]


@pytest.mark.parametrize(
    ("part", "first", "rows"),
    [
        ("train", 0, 150),
        ("train[:]", 0, 150),
        ("train[0%:100%]", 0, 150),
        ("train[:90%]", 0, 135),
        ("train[90%:]", 135, 15),
        ("train[:33%]", 0, 49),  # 49.5 rounded down
        ("train[33%:]", 49, 101),
        ("train[100:149]", 100, 49),
        ("train[10:90%]", 10, 125),
        ("test[:1]", 150, 1),
        ("test[50%:]", 175, 25),
    ],
)
def test_parts_of_a_split_of_150_and_one_of_50_rows(dataset: DataSet, part: str, first: int, rows: int) -> None:
    assert dataset.span(part) == Split(first=first, rows=rows)
    assert dataset.num_rows(part) == rows


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("train[5:5]", r"split 'train\[5:5\]' of .* has no rows.*: rows 5 to 5 of 150; use e\.g\. train\[:90%\]$"),
        ("train[:0]", "rows 0 to 0 of 150"),
        ("test[:1%]", r"rows 0 to 0 of 50; use e\.g\. test\[:90%\]"),  # half a row, rounded down
        ("train[20:10]", "rows 20 to 10 of 150"),
        ("train[:151]", "or more than there are: rows 0 to 151 of 150"),
        ("train[:101%]", "rows 0 to 151 of 150"),
        ("train[150:]", "rows 150 to 150 of 150"),
        ("trian[:90%]", r"has no split 'trian' \(did you mean 'train'\?\); it has train, test$"),
        ("train[-5:]", r"has no split 'train\[-5:\]'.*; it has train, test$"),
        ("train[::2]", r"has no split 'train\[::2\]'"),
        ("train[5]", r"has no split 'train\[5\]'"),
        ("train[:9.5%]", r"has no split 'train\[:9.5%\]'"),
        ("train[:90%][:5]", r"has no split"),
        ("[:90%]", r"has no split '\[:90%\]'"),
    ],
)
def test_a_part_that_is_none_is_refused(dataset: DataSet, part: str, message: str) -> None:
    for look in (dataset.span, dataset.num_rows, dataset.blocks, dataset.labels):
        with pytest.raises(DataError, match=message):
            look(part)


# --- what is read of them --------------------------------------------------------------------------------------------


@given(parts())
def test_blocks_are_those_of_the_split_cut_at_the_ends(drawn: tuple[DataSet, int, int]) -> None:
    data, start, stop = drawn
    low, high = data.span("train").first + start, data.span("train").first + stop
    expected = [
        [max(first, low), min(first + rows, high) - max(first, low)]
        for first, rows in data.blocks("train").tolist()
        if first < high and first + rows > low
    ]
    assert data.blocks(f"train[{start}:{stop}]").tolist() == expected


def test_blocks_of_a_part_of_150_rows_in_blocks_of_16(dataset: DataSet) -> None:
    assert dataset.blocks("train[20:50]").tolist() == [[20, 12], [32, 16], [48, 2]]
    assert dataset.blocks("train[20:22]").tolist() == [[20, 2]]
    assert dataset.blocks("train[16:32]").tolist() == [[16, 16]]


@given(parts(), st.integers(1, 6), st.integers(0, 2**31))
def test_an_epoch_of_a_part_holds_each_row_exactly_once(
    drawn: tuple[DataSet, int, int], window: int, seed: int
) -> None:
    data, start, stop = drawn
    part = f"train[{start}:{stop}]"
    order = Order(data.fingerprint, seed, data.blocks(part), window)
    for epoch in range(3):
        read = order.ids(epoch * order.num_rows, (epoch + 1) * order.num_rows)
        assert sorted(read.tolist()) == ids(data, part)


@pytest.mark.parametrize(("part", "start", "stop"), [("train[:90%]", 0, 135), ("train[90%:]", 135, 150)])
def test_images_and_labels_are_slices_of_the_whole(
    dataset: DataSet, images: NDArray[np.uint8], part: str, start: int, stop: int
) -> None:
    assert (dataset.rows(part, 0, stop - start) == images[start:stop]).all()
    assert (dataset.rows(part, 3, 7) == images[start + 3 : start + 7]).all()
    whole, own = dataset.labels("train"), dataset.labels(part)
    assert whole is not None
    assert own is not None
    assert own.tolist() == whole[start:stop].tolist()
    with pytest.raises(IndexError, match=rf"of split '{part[:5]}.*', which has {stop - start}$"):
        dataset.rows(part, 0, stop - start + 1)


def test_a_stream_of_a_part_reads_its_rows_and_no_other(dataset: DataSet, images: NDArray[np.uint8]) -> None:
    with Stream(dataset, split="train[:90%]", batch=27, seed=3, rows=slice(0, 27)) as stream:
        assert stream.state()["split"] == "train[:90%]"
        batches = [next(stream) for _ in range(5)]
    read = np.concatenate([batch.ids for batch in batches])
    assert sorted(read.tolist()) == list(range(135))
    assert all((batch.images.numpy() == images[batch.ids]).all() for batch in batches)


@pytest.mark.parametrize(("part", "first", "rows"), [("train[90%:]", 135, 15), ("test[:20%]", 150, 10)])
def test_a_sample_of_a_part_is_of_its_rows(dataset: DataSet, part: str, first: int, rows: int) -> None:
    whole = set(range(first, first + rows))
    assert set(Sample.of(dataset, part).ids.tolist()) == whole
    few, rest = Sample.of(dataset, part, 4), Sample.of(dataset, part, after=4)
    assert (len(few), len(rest)) == (4, rows - 4)
    assert set(few.ids.tolist()) | set(rest.ids.tolist()) == whole
    with pytest.raises(DataError, match=rf"{rows + 1} images were to be measured, but split .* has {rows};"):
        Sample.of(dataset, part, rows + 1)


# --- what is held out ------------------------------------------------------------------------------------------------


def test_the_split_that_is_named_is_held_out(small_data: Path, tiny: Tiny) -> None:
    data = DataSet.open(small_data)
    assert held_out_split(tiny(), data) == "test"
    assert held_out_split(tiny("autoencoder", "data.held_out=train[90%:]"), data) == "train[90%:]"
    assert held_out_split(tiny("autoencoder", "data.split=train[:90%]"), layout(4, 40, 8)) == "train[:90%]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.held_out=val", "has no split 'val'"),
        ("data.held_out=train[99%:99%]", "has no rows"),
        ("data.held_out=tets[:50%]", "has no split 'tets' .did you mean 'test'"),
        ("data.split=train[:200]", "rows 0 to 200 of 96"),
    ],
)
def test_a_split_that_is_not_there_is_refused_before_anything_starts(
    override: str, message: str, small_data: Path, tiny: Tiny, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", tiny("autoencoder", override), small_data)
    with pytest.raises(DataError, match=message):
        check(run.config, DataSet.open(small_data), 1)
    with pytest.raises(DataError, match=message):
        next(train(run, World.local("cpu"), should_stop=lambda: pytest.fail("a step was taken")))


def test_a_part_must_fill_a_batch_and_the_measures(small_data: Path, tiny: Tiny) -> None:
    data = DataSet.open(small_data)
    with pytest.raises(ConfigError, match=r"batch 20 is more than the 19 images of split 'train\[:20%\]'"):
        check(tiny("autoencoder", "data.split=train[:20%]"), data, 1)
    overrides = ["data.held_out=train[90%:]", "report.quality_every_samples=40"]
    with pytest.raises(ConfigError, match=r"report.quality_images=11 is more than the 10 images of .*train\[90%:\]"):
        check(tiny("autoencoder", *overrides, "report.quality_images=11"), data, 1)
    assert check(tiny("autoencoder", *overrides, "report.quality_images=10"), data, 1) == []


# --- what real images would get --------------------------------------------------------------------------------------


@pytest.fixture
def of_a_part(small_data: Path, tiny: Tiny) -> Model:
    """A GAN that was trained on the first 86 of 96 training images, or would have been."""
    data = DataSet.open(small_data)
    config = tiny("gan", "data.split=train[:90%]")
    objective = build_objective(config, data.shape, data.num_classes)
    return Model(objective, config, data.shape, 0, torch.device("cpu"), data.num_classes)


@pytest.mark.parametrize(
    ("split", "num", "taken"),
    [
        ("test", None, 32),
        ("train[90%:]", None, 10),
        ("train[:90%]", 43, 43),
        ("train[:90%]", 44, None),  # the other 42 are fewer
        ("train", 10, None),  # some of them may be among those that it was trained on
        ("train[:50%]", 10, None),
        ("train[80%:]", 5, None),
    ],
)
def test_the_floor_is_of_images_of_the_part_that_are_not_measured(
    of_a_part: Model, small_data: Path, split: str, num: int | None, taken: int | None
) -> None:
    sample = Sample.of(DataSet.open(small_data), split, num)
    floor = floor_sample(of_a_part, sample)
    if taken is None:
        assert floor is None
        return
    assert floor is not None
    found = set(floor.ids.tolist())
    assert len(found) == taken
    assert found <= set(range(86))
    assert not found & set(sample.ids.tolist())


def test_an_evaluation_has_a_floor_where_there_is_one(of_a_part: Model, small_data: Path) -> None:
    data = DataSet.open(small_data)
    for split, has_floor in (("test", True), ("train", False)):
        details = evaluate(of_a_part, data, split, num=20).details
        distances = {name: values for name, values in details.items() if name.startswith("fd/")}
        assert len(distances) == 1
        assert all(("floor" in values) == has_floor for values in distances.values())


def test_a_floor_of_another_data_set_is_left_out(of_a_part: Model) -> None:
    sample = Sample.of(layout(40, 5, 8), "before")
    assert floor_sample(of_a_part, sample) is None
