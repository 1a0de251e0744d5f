"""Real gloo worlds of one, two and three ranks: what the objective is given of rare classes and of damaged data."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from shoal.checkpoint import newest, read
from shoal.data import DataSet, Order
from shoal.data.write import write_dataset
from shoal.run import METRICS, read_rows

SCENARIO = Path(__file__).parent / "ranks" / "data_plane.py"
WORLDS = (1, 2, 3)
BATCH, BATCHES, ROWS = 20, 24, 320
Differing = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]]


def numbered(num: int) -> NDArray[np.uint8]:
    """Return images of 4x4 whose first two pixels say which one it is."""
    images = np.random.default_rng(0).integers(0, 256, (num, 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(num) % 256, np.arange(num) // 256
    return images


def write(path: Path, labels: NDArray[np.int64]) -> Path:
    """Write numbered images in blocks of 16 and shards of five blocks."""
    write_dataset(
        path,
        {"train": [(numbered(len(labels)), labels)]},
        shape=(1, 4, 4),
        class_names=["a", "b", "c", "rare"],
        source="test",
        rows_per_block=16,
        shard_bytes=5 * 16 * 16,
    )
    return path


def damaged(path: Path, out: Path, blocks: Iterable[int]) -> Path:
    """Copy a data set, and change a byte of each of some blocks."""
    shutil.copytree(path, out)
    data = DataSet.open(path)
    for block in blocks:
        row = data.rows("train", 16 * block + 3, 16 * block + 4).tobytes()
        (shard,) = (shard for shard in out.glob("shard-*") if row in shard.read_bytes())
        content = bytearray(shard.read_bytes())
        content[content.index(row) + 5] ^= 1
        shard.write_bytes(content)
    return out


@dataclass(frozen=True)
class Data:
    """The folder of the data sets, the damaged blocks of each, and the rows of an undamaged run, [BATCHES][BATCH]."""

    folder: Path
    blocks: Mapping[str, Sequence[int]]
    order: list[list[int]]

    def meets(self, block: int) -> int:
        return next(k for k, ids in enumerate(self.order) if any(row // 16 == block for row in ids))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data-plane")
    # 1 % of 400 rows, every hundredth.
    write(folder / "rare", np.where(np.arange(400) % 100 == 57, 3, np.arange(400) % 10 // 4))
    whole = DataSet.open(write(folder / "whole", np.arange(ROWS) % 3))
    order = Order(whole.fingerprint, 0, whole.blocks("train"), 2)
    ids = order.ids(0, BATCHES * BATCH).reshape(BATCHES, BATCH).tolist()
    found = Data(folder, {}, ids)
    by_meeting = sorted(range(20), key=found.meets)
    first = by_meeting[0]
    met = {k: [block for block in by_meeting if found.meets(block) == k] for k in range(BATCHES)}
    assert len(met[1]) >= 2  # one batch meets two damaged blocks
    late = by_meeting[12]
    # The first batch, two at once in the very next one, what takes the place of one of them, and one in the middle.
    blocks = {
        "damaged": sorted({first, *met[1][:2], (met[1][0] + 1) % 20, late}),
        "late": [late],
        "hopeless": range(20),
    }
    for name, of in blocks.items():
        damaged(folder / "whole", folder / name, of)
    # Asked to stop when the next batch meets damage, and again at once.
    (folder / "stop-after.json").write_text(json.dumps([1, 1, found.meets(late) - 2]))
    return Data(folder, blocks, ids)


@dataclass(frozen=True)
class Played:
    """What a world left behind: its folder, what was seen of each run, and what each rank raised."""

    folder: Path
    ranks: list[dict[str, Tensor]]
    errors: list[dict[str, str]]

    def seen(self, name: str) -> list[list[tuple[int, int]]]:
        """Return row and label of each image, batch by batch."""
        batches = torch.cat([rank[name] for rank in self.ranks], dim=1)
        return [[(int(row), int(label)) for row, label in batch] for batch in batches]


@pytest.fixture(scope="session")
def play(
    data: Data, tmp_path_factory: pytest.TempPathFactory, launch_world: Callable[..., list[str]]
) -> Callable[[int], Played]:
    """Run the scenario at a world size, once."""
    known: dict[int, Played] = {}

    def run(size: int) -> Played:
        if size not in known:
            out = tmp_path_factory.mktemp(f"world{size}")
            launch_world(size, SCENARIO, data.folder, out)
            known[size] = Played(
                out,
                [load_file(out / f"rank{rank}.safetensors") for rank in range(size)],
                [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(size)],
            )
        return known[size]

    return run


# --- a class of 1 % ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_a_rare_class_under_uniform_is_a_quarter_of_what_the_workers_receive(
    size: int, play: Callable[[int], Played]
) -> None:
    seen = play(size).seen("balanced")
    for epoch in range(3):
        received = [pair for batch in seen[20 * epoch : 20 * epoch + 20] for pair in batch]
        assert len(received) == 400
        assert [sum(label == number for _, label in received) for number in range(4)] == [100] * 4
        for row, label in received:
            assert label == (3 if row % 100 == 57 else row % 10 // 4)
        assert sorted(row for row, label in received if label == 3) == [57] * 25 + [157] * 25 + [257] * 25 + [357] * 25


def test_one_and_three_workers_receive_the_same_images(play: Callable[[int], Played]) -> None:
    assert play(1).seen("balanced") == play(2).seen("balanced") == play(3).seen("balanced")


# --- damaged blocks ---------------------------------------------------------------------------------------------------


def read_instead(row: int, closed: set[int]) -> int:
    """Return the row that is read for ``row``: all blocks have 16 rows, so it keeps its place in the next open one."""
    block = row // 16
    while block in closed:
        block = (block + 1) % 20
    return 16 * block + row % 16


def expected(data: Data, bad: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the rows of each batch, damaged blocks being left out from the one that meets them, and since when."""
    closed: set[int] = set()
    since: list[list[int]] = []
    batches = []
    for k, ids in enumerate(data.order):
        while met := {read_instead(row, closed) // 16 for row in ids} & {*bad}:
            closed |= met
            since += [[block, k * BATCH] for block in met]
        batches.append([read_instead(row, closed) for row in ids])
    return batches, sorted(since, key=lambda entry: entry[::-1])


def rows(played: Played, name: str) -> list[list[int]]:
    return [[row for row, _ in batch] for batch in played.seen(name)]


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("name", ["straight", "stopped", "killed"])
def test_every_world_leaves_out_the_same_blocks_from_the_same_batches(
    size: int, name: str, play: Callable[[int], Played], data: Data
) -> None:
    batches, since = expected(data, data.blocks["damaged"])
    assert [block for block, _ in sorted(since)] == data.blocks["damaged"]
    assert len({position for _, position in since}) == 3
    assert since[0][1] == 0
    played = play(size)
    assert rows(played, name) == batches
    assert all(label == row % 3 for batch in played.seen(name) for row, label in batch)
    saved = newest(played.folder / name / "checkpoints")
    assert saved is not None
    assert saved.stream["quarantine"] == since
    assert len(json.dumps(saved.stream)) < 1000


@pytest.mark.parametrize("size", WORLDS)
def test_stopped_and_killed_runs_learn_the_same(size: int, play: Callable[[int], Played], differing: Differing) -> None:
    folder = play(size).folder
    straight, *others = (newest(folder / name / "checkpoints") for name in ("straight", "stopped", "killed"))
    assert straight is not None
    for other in others:
        assert other is not None
        assert other.samples == straight.samples == BATCHES * BATCH
        assert other.stream == straight.stream
        assert differing(other.tensors(), straight.tensors()) == []


def test_a_stop_at_the_same_step_leaves_the_damage_to_who_goes_on(play: Callable[[int], Played], data: Data) -> None:
    checkpoints = play(3).folder / "stopped" / "checkpoints"
    _, since = expected(data, data.blocks["damaged"])
    at_first = [entry for entry in since if entry[1] == 0]
    (first,) = checkpoints.glob(f"{BATCH:012d}*")  # the start that wrote it may be in its name
    (second,) = checkpoints.glob(f"{2 * BATCH:012d}*")
    assert read(first).stream["quarantine"] == at_first
    assert len(read(second).stream["quarantine"]) > len(at_first)


@pytest.mark.parametrize("size", WORLDS)
def test_it_is_in_the_metrics_of_every_tick_since(size: int, play: Callable[[int], Played], data: Data) -> None:
    _, since = expected(data, data.blocks["damaged"])
    table = read_rows(play(size).folder / "straight" / METRICS)
    assert [row["samples"] for row in table] == [40 * k for k in range(1, 13)]
    for row in table:
        num = sum(position <= row["samples"] for _, position in since)
        assert (row["data/quarantined_blocks"], row["data/quarantined_rows"]) == (num, 16 * num)


@pytest.mark.parametrize("size", WORLDS)
def test_what_one_rank_cannot_read_all_leave_out(size: int, play: Callable[[int], Played], data: Data) -> None:
    (block,) = data.blocks["late"]
    own = slice(BATCH * (size - 1) // size, BATCH)
    first = next(k for k, ids in enumerate(data.order) if any(row // 16 == block for row in ids[own]))
    closed = [set[int]() if k < first else {block} for k in range(BATCHES)]
    played = play(size)
    assert rows(played, "one-node") == [
        [read_instead(row, out) for row in ids] for ids, out in zip(data.order, closed, strict=True)
    ]
    saved = newest(played.folder / "one-node" / "checkpoints")
    assert saved is not None
    assert saved.stream["quarantine"] == [[block, first * BATCH]]


@pytest.mark.parametrize("size", WORLDS)
def test_without_the_flag_all_ranks_leave_with_a_checkpoint_and_the_error(
    size: int, play: Callable[[int], Played], data: Data
) -> None:
    (block,) = data.blocks["late"]
    played = play(size)
    for told in played.errors:
        assert told["late"].startswith("DamagedBlockError: ")
        assert f"(rows {16 * block} to {16 * block + 15})" in told["late"]
    saved = newest(played.folder / "late-refused" / "checkpoints")
    assert saved is not None
    assert saved.samples == data.meets(block) * BATCH
    assert "quarantine" not in saved.stream


@pytest.mark.parametrize("size", WORLDS)
def test_a_split_without_a_whole_block_ends_the_run_on_all_ranks(size: int, play: Callable[[int], Played]) -> None:
    for told in play(size).errors:
        assert told["hopeless"].startswith("DataError: all blocks of split 'train' of ")
