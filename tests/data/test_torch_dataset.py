from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from tests.data.rows_of import rows_of
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import Compose, Normalize, PILToTensor, RandomResizedCrop, ToTensor

from shoal.data import DataSet
from shoal.data.importers import torch_dataset
from shoal.data.importers.torch_dataset import open_torch
from shoal.data.importers.torch_items import to_label, to_pixels
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
Y = np.arange(20) % 3
NAMES = ["ant", "bee", "cat"]
HWC = X.transpose(0, 2, 3, 1)


class Items(Dataset[Any]):
    """A data set of the items given."""

    def __init__(self, items: list[Any], classes: object = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    """The same, to be iterated over."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


KINDS: dict[str, Callable[[int], Any]] = {
    "pil": lambda i: Image.fromarray(HWC[i]),
    "tensor": lambda i: torch.from_numpy(X[i]),
    "tensor-hwc": lambda i: torch.from_numpy(HWC[i]),
    "array-hwc": lambda i: HWC[i],
    "array-chw": lambda i: X[i],
    "float": lambda i: ToTensor()(Image.fromarray(HWC[i])),
    "float64": lambda i: HWC[i] / 255,
    "bfloat16": lambda i: torch.from_numpy(X[i] // 255).bfloat16(),
    "grad": lambda i: (torch.from_numpy(X[i]) / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True])
def test_kinds_of_images(kind: str, stream: bool) -> None:
    items = [(KINDS[kind](i), int(Y[i])) for i in range(20)]
    source = open_torch(Stream(items) if stream else Items(items), class_names=NAMES)
    read = rows_of(source)
    assert (source.kind, source.shape, source.splits) == ("torch", (3, 4, 5), ["train"])
    assert np.array_equal(read.images["train"], X // 255 * 255 if kind == "bfloat16" else X)
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == Y.tolist()


@pytest.mark.parametrize(
    "item",
    [
        lambda i: (X[i], torch.tensor(Y[i])),
        lambda i: [X[i], torch.tensor([Y[i]])],
        lambda i: (X[i], np.int8(Y[i])),
        lambda i: (X[i], NAMES[Y[i]]),
        lambda i: {"image": X[i], "label": Y[i], "id": i},
        lambda i: {"target": NAMES[Y[i]], "pixel_values": X[i]},
    ],
)
def test_kinds_of_items(item: Callable[[int], Any]) -> None:
    read = rows_of(open_torch(Items([item(i) for i in range(20)], NAMES)))
    assert np.array_equal(read.images["train"], X)
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == Y.tolist()


def test_items_without_labels() -> None:
    for items in ([*X], [{"image": image} for image in X], [(image,) for image in X], [(image, None) for image in X]):
        source = open_torch(Items(items))
        assert source.class_names is None
        assert np.array_equal(rows_of(source).images["train"], X)
    labels = rows_of(open_torch(Items([X[0], (X[1], 2), (X[2], -1)]), class_names=NAMES)).labels["train"]
    assert labels is not None
    assert labels.tolist() == [-1, 2, -1]


def test_grey_images() -> None:
    grey = X[:, 0]
    for items in ([*grey], [Image.fromarray(image) for image in grey], [torch.from_numpy(i)[None] for i in grey]):
        source = open_torch(Items(list(items)))
        assert source.shape == (1, 4, 5)
        assert np.array_equal(rows_of(source).images["train"][:, 0], grey)
    read = rows_of(open_torch(Items([X[0], grey[1]]))).images["train"]
    assert np.array_equal(read[1], np.stack([grey[1]] * 3))
    with pytest.raises(DataError, match=r"item 1 of split 'train' has colour, but the first one is grey"):
        rows_of(open_torch(Items([grey[0], X[1]])))


def test_units_are_ranges_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_dataset, "UNIT_BYTES", 6 * 60)
    source = open_torch({"val": Items([*X[:7]]), "train": Stream([*X[7:]])})
    assert [tuple(unit) for unit in source.units] == [("val", 0, 6), ("val", 6, 7), ("train", 0, None)]
    assert source.num_rows is None
    read = rows_of(source)
    assert np.array_equal(read.images["val"], X[:7])
    assert np.array_equal(read.images["train"], X[7:])
    assert read.piece_bytes == 6 * 60
    assert open_torch({"val": Items([*X[:7]])}).num_rows == 7


def test_data_sets_of_torch_and_torchvision(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / NAMES[Y[i]]).mkdir(exist_ok=True)
        Image.fromarray(HWC[i]).save(tmp_path / NAMES[Y[i]] / f"{i}.png")
    order = [0, 3, 1, 4, 2, 5]
    for transform in (None, ToTensor(), PILToTensor()):
        source = open_torch(ImageFolder(str(tmp_path), transform))
        read = rows_of(source)
        assert source.class_names == NAMES
        assert np.array_equal(read.images["train"], X[order])
        assert read.labels["train"] is not None
        assert read.labels["train"].tolist() == [0, 0, 1, 1, 2, 2]
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    assert np.array_equal(rows_of(open_torch(tensors, class_names=NAMES)).images["train"], X)
    assert np.array_equal(rows_of(open_torch(Subset(tensors, [3, 1]), class_names=NAMES)).images["train"], X[[3, 1]])


def test_random_transforms_are_refused() -> None:
    torch.manual_seed(0)
    items = FakeData(2, (3, 8, 8), transform=Compose([RandomResizedCrop(4), ToTensor()]))
    with pytest.raises(DataError, match=r"item 0 of split 'train' is another image each time .* random transforms"):
        open_torch(items, class_names=["a"] * 10)


def test_normalised_images_are_refused() -> None:
    transform = Compose([ToTensor(), Normalize(0.5, 0.5)])
    with pytest.raises(
        DataError, match=r"item 0 .* floats from -\d.* to \d.*, which must be from 0 to 1; leave Normalize"
    ):
        open_torch(FakeData(2, (3, 8, 8), transform=transform), class_names=["a"])


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index]


@pytest.mark.parametrize(
    ("datasets", "names", "message"),
    [
        ({}, None, r"there is no data set"),
        (Items([]), None, r"the data set of split 'train' has no items"),
        (Stream([]), None, r"the data set of split 'train' has no items"),
        ({"test": NoLength()}, None, r"split 'test', NoLength, has neither __len__ with __getitem__ nor"),
        (iter([X[0], X[0]]), None, r"nor an __iter__ that starts anew"),
        (Items([(X[0], 1)]), None, r"labels, but the data set has no classes to name them; give class_names=\["),
        (Items([(X[0], 3)]), NAMES, r"item 0 of split 'train': the label is 3, but 3 classes have names"),
        (Items([(X[0], -2)]), NAMES, r"the label is -2, but 3 classes"),
        (Items([(X[0], "dog")]), NAMES, r"the label is 'dog'; return the number .*, or one of ant, bee, cat"),
        (Items([(X[0], 1.0)]), NAMES, r"the label is 1.0; return the number of the class"),
        (Items([(X[0], True)]), NAMES, r"the label is True; return"),
        (Items([(X[0], torch.eye(3)[0])]), NAMES, r"the label is array\(\[1., 0., 0.\].*; return the number"),
        (Items([X[0], (X[1], 1)]), None, r"item 1 of split 'train' has a label, but the first one has none"),
        (Items([X[0], X[1][:, :3]]), None, r"item 1 .* has 3x5 pixels .* the first one 4x5; all need one size"),
        (Items([(X[0], 1, 2)]), None, r"item 0 .* has 3 parts; return the image, \(image, label\), or a dictionary"),
        (Items([{"photo": X[0]}]), None, r"has the keys photo; an image goes by image, img"),
        (Items(["a.png"]), None, r"the image is a str; return a PIL image, a tensor"),
        (Items([X[0].astype(np.int64)]), None, r"the image is int64; return uint8 in 0 to 255, or floats in 0 to 1"),
        (Items([X[0] > 3]), None, r"the image is bool; return uint8"),
        (Items([X[0] / 1.0]), None, r"floats from \d+ to 2\d\d, which must be from 0 to 1"),
        (Items([np.full((4, 5), np.nan)]), None, r"floats from nan to nan"),
        (Items([np.zeros((2, 4, 5), np.uint8)]), None, r"the image has shape \[2, 4, 5\], not \[H, W\]"),
        (Items([np.zeros(5, np.uint8)]), None, r"the image has shape \[5\]"),
        (
            {"train": Items([(X[0], 1)], ["a", "b"]), "test": Items([(X[0], 1)], ["b", "a"])},
            None,
            r"of split 'test' are not",
        ),
    ],
)
def test_refused(datasets: object, names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(open_torch(datasets, class_names=names))


def test_where_the_channels_are_if_both_ends_could_be() -> None:
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(to_pixels("x", torch.from_numpy(image)), image)
    assert np.array_equal(to_pixels("x", image), image.transpose(2, 0, 1))


@given(arrays(np.uint8, (3, 2, 4)), st.sampled_from([np.float16, np.float32, np.float64]))
def test_floats_give_back_what_they_were_made_of(image: NDArray[np.uint8], dtype: type) -> None:
    floats: NDArray[Any] = (image / 255).astype(dtype)
    assert np.array_equal(to_pixels("x", floats), image)
    assert np.array_equal(to_pixels("x", torch.from_numpy(floats)), image)


@given(st.floats(-0.01, 1.01))
def test_floats_become_the_nearest_level(value: float) -> None:
    nearest = min(range(-3, 260), key=lambda level: abs(level - value * 255))
    try:
        assert abs(int(to_pixels("x", np.full((1, 1, 1), value))[0, 0, 0]) - value * 255) <= 0.5
    except DataError:
        assert not 0 <= nearest <= 255


def test_labels() -> None:
    assert [to_label("x", label, NAMES) for label in (None, -1, 2, "bee", np.array([1]))] == [-1, -1, 2, 1, 1]


def test_import_torch(tmp_path: Path) -> None:
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    sets = {"train": Subset(tensors, range(15)), "test": Subset(tensors, range(15, 20))}
    one = torch_dataset.import_torch(sets, tmp_path / "one", class_names=NAMES)
    two = torch_dataset.import_torch(sets, tmp_path / "two", class_names=NAMES, jobs=2)
    assert one.fingerprint == two.fingerprint
    assert one.source == "torch"
    data = DataSet.open(tmp_path / "two")
    labels = data.labels("test")
    assert (data.splits, data.class_names) == ({"train": 15, "test": 5}, NAMES)
    assert np.array_equal(data.rows("test", 0, 5), X[15:])
    assert labels is not None
    assert labels.tolist() == Y[15:].tolist()


def test_import_torch_in_part(tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    items = Items([(image, int(label)) for image, label in zip(X, Y, strict=True)], NAMES)
    torch_dataset.import_torch(items, tmp_path / "one", limit=3, progress=lambda *done: progress.append(done))
    assert DataSet.open(tmp_path / "one").splits == {"train": 3}
    assert progress[-1][0] == 3
    manifest = torch_dataset.import_torch(items, tmp_path / "two", split={"train": 0.5, "val": 0.5})
    assert set(manifest.splits) == {"train", "val"}
    assert manifest.num_rows == 20
    with pytest.raises(DataError, match="exists already"):
        torch_dataset.import_torch(Items([]), tmp_path / "one")
    with pytest.raises(DataError, match="item 1 of split 'train' has 3x5 pixels"):
        torch_dataset.import_torch(Items([X[0], X[0][:, :3]]), tmp_path / "three")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]
