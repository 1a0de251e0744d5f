import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from shoal.data import DataSet
from shoal.data.verify import verify
from shoal.data.write import write_dataset
from shoal.errors import DataError
from shoal.quality.classifier import train_extractor
from shoal.quality.distance import Moments, frechet_distance
from shoal.quality.extractor import Extractor, random_extractor
from shoal.quality.store import default_extractor, keep, kept, named_extractor, read


@pytest.fixture
def data(corner_data: DataSet, tmp_path: Path) -> DataSet:
    """Return a copy to keep extractors beside."""
    return DataSet.open(shutil.copytree(corner_data.path, tmp_path / "data"))


@pytest.fixture
def unlabelled(tmp_path: Path) -> DataSet:
    """60 images of 3x20x9, brighter to the top."""
    noise = np.random.default_rng(0).integers(0, 60, (60, 3, 20, 9))
    images = (noise + np.linspace(190, 0, 20)[:, None]).astype(np.uint8)
    write_dataset(tmp_path / "plain", {"train": [(images, None)]}, shape=(3, 20, 9), class_names=None, source="test")
    return DataSet.open(tmp_path / "plain")


def seen(extractor: Extractor, data: DataSet, num: int = 20) -> Tensor:
    return extractor(torch.from_numpy(data.rows("train", 0, num)))[0]


# --- training ----------------------------------------------------------------------------------------------------


def kept_at(extractor: Extractor, data: DataSet) -> Path:
    path = keep(extractor, data).local
    assert path is not None
    return path


def test_a_classifier_learns_the_classes(classifier: Extractor, corner_data: DataSet) -> None:
    facts = classifier.facts
    assert facts.accuracy == 1.0
    assert (facts.accuracy_split, facts.num_classes, facts.num_features, facts.seed) == ("test", 4, 128, 0)
    assert (facts.shape, facts.fingerprint) == (corner_data.shape, corner_data.fingerprint)
    features, logits = classifier(torch.from_numpy(corner_data.rows("test", 0, 64)))
    assert features.shape == (64, 128)
    assert features.dtype == torch.float32
    assert logits is not None
    labels = corner_data.labels("test")
    assert labels is not None
    assert logits.argmax(1).tolist() == labels.tolist()


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    classifier: Extractor, corner_data: DataSet
) -> None:
    before = torch.random.get_rng_state()
    again = train_extractor(corner_data)  # the classifier is the default where there are labels
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.id == classifier.id
    assert train_extractor(corner_data, seed=1).id != classifier.id


def test_without_labels_it_learns_which_way_up_an_image_is(unlabelled: DataSet) -> None:
    told: list[tuple[int, int]] = []
    extractor = train_extractor(unlabelled, progress=lambda done, total: told.append((done, total)))
    assert extractor.facts.kind == "rotation"
    assert extractor.facts.accuracy is not None
    assert extractor.facts.accuracy > 0.9
    assert extractor.facts.accuracy_split == "train"
    assert extractor(torch.from_numpy(unlabelled.rows("train", 0, 5)))[1] is None  # its classes are no classes
    assert told[-1] == (3000, 3000)
    assert [done for done, _ in told] == list(range(60, 3001, 60))


def test_what_cannot_be_learned_is_refused(unlabelled: DataSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no labels, which a classifier learns; use --kind rotation"):
        train_extractor(unlabelled, "classifier")
    images = np.zeros((20, 1, 8, 8), np.uint8)
    splits = {"train": [(images, np.arange(20) % 2 - 1)]}  # half of them without a label
    write_dataset(tmp_path / "one", splits, shape=(1, 8, 8), class_names=["only", "never"], source="test")
    with pytest.raises(DataError, match="fewer than two classes"):
        train_extractor(DataSet.open(tmp_path / "one"))
    with pytest.raises(DataError, match="no split 'tain'"):
        train_extractor(unlabelled, split="tain")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 33), (5, 28, 28), (3, 64, 64)])
def test_any_shape_has_features(shape: tuple[int, int, int]) -> None:
    extractor = random_extractor(shape)
    pixels = torch.randint(256, (6, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features, logits = extractor(pixels)
    assert features.shape == (6, 128)
    assert logits is None
    assert features.std(0).max() > 0.01
    assert random_extractor(shape).id == extractor.id != random_extractor(shape, seed=1).id
    torch.testing.assert_close(extractor(pixels[:2])[0], features[:2])  # an image's features are its own


# --- what its distances tell -------------------------------------------------------------------------------------


def test_the_distance_rises_with_noise_blur_and_dropped_classes(classifier: Extractor, corner_data: DataSet) -> None:
    images = torch.from_numpy(corner_data.rows("train", 0, 96))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    real = Moments.of(classifier(torch.from_numpy(corner_data.rows("test", 0, 64)))[0].double())

    def distance(changed: Tensor) -> float:
        return frechet_distance(real, Moments.of(classifier(changed)[0].double()))

    noisy = [distance((images + sigma * noise).clamp(0, 255).to(torch.uint8)) for sigma in (0, 30, 60, 120)]
    blurred = [distance(gaussian_blur(images, [11, 11], [sigma, sigma])) for sigma in (0.1, 1.0, 3.0, 6.0)]
    classes = torch.arange(96) // 24
    dropped = [distance(images[classes < left]) for left in (4, 3, 2, 1)]
    for rising in (noisy, blurred, dropped):
        assert rising == sorted(rising)
        assert rising[-1] > 3 * rising[0]


# --- keeping -----------------------------------------------------------------------------------------------------


def test_what_is_kept_comes_back(classifier: Extractor, data: DataSet) -> None:
    path = kept_at(classifier, data)
    assert path == data.path / "extractors" / f"classifier-{classifier.facts.hash}"
    assert sorted(file.name for file in path.iterdir()) == ["extractor.json", "weights.safetensors"]
    found = read(path, data)
    assert found.facts == classifier.facts
    assert torch.equal(seen(found, data), seen(classifier, data))
    assert kept_at(classifier, data) == path  # once more changes nothing
    told = json.loads((path / "extractor.json").read_text())
    assert told["fingerprint"] == data.fingerprint
    assert set(told["versions"]) == {"shoal", "torch"}


def test_a_data_set_with_extractors_is_still_whole(classifier: Extractor, data: DataSet) -> None:
    keep(classifier, data)
    assert DataSet.open(data.path).fingerprint == data.fingerprint
    assert verify(data.path) == []


def test_the_default_is_the_best_kind_with_the_lowest_seed(
    classifier: Extractor, data: DataSet, tmp_path: Path
) -> None:
    assert default_extractor(data).id == random_extractor(data.shape).id
    keep(random_extractor(data.shape, seed=4), data)
    assert default_extractor(data).facts.seed == 4
    rotation = train_extractor(data, "rotation")
    keep(rotation, data)
    assert default_extractor(data).id == rotation.id
    later = train_extractor(data, seed=3)
    keep(later, data)
    assert default_extractor(data).id == later.id
    keep(classifier, data)
    assert default_extractor(data).id == classifier.id
    assert [facts.id for _, facts in kept(data)][:2] == [classifier.id, later.id]


def test_an_extractor_has_several_names(classifier: Extractor, data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(classifier, data)
    monkeypatch.chdir(data.path)
    names = [classifier.id, path.name, "classifier", str(path), f"extractors/{path.name}"]
    assert {named_extractor(name, data).id for name in names} == {classifier.id}
    untrained = random_extractor(data.shape).id
    assert named_extractor("random", data).id == named_extractor(untrained, data).id == untrained


@pytest.mark.parametrize("name", ["clasifier", "rotation", "classifier-01234567", "random:01234567", "nowhere/at/all"])
def test_a_name_of_nothing_is_refused(name: str, classifier: Extractor, data: DataSet) -> None:
    with pytest.raises(DataError, match=rf"no extractor '{name}'.*none was made for .*`shoal extractor train --data"):
        named_extractor(name, data)
    keep(classifier, data)
    with pytest.raises(DataError, match=rf"no extractor '{name}'.*has classifier-{classifier.facts.hash};"):
        named_extractor(name, data)


# --- what does not fit -------------------------------------------------------------------------------------------


def test_an_extractor_of_another_data_set_is_refused(
    classifier: Extractor, data: DataSet, write_again: Callable[[int], DataSet]
) -> None:
    path = keep(classifier, data)
    other = write_again(12)
    with pytest.raises(DataError, match=r"was made for the data set .*corners.* not for .*other12.*; train one: shoal"):
        read(path, other)
    shutil.copytree(data.path / "extractors", other.path / "extractors")
    assert default_extractor(other).facts.kind == "random"  # as a default it is passed over
    with pytest.raises(DataError, match="not for"):
        named_extractor(classifier.id, other)


def test_an_extractor_of_another_shape_is_refused(
    classifier: Extractor, data: DataSet, write_again: Callable[[int], DataSet]
) -> None:
    with pytest.raises(DataError, match=r"was made for images of 1x12x12, .*other10 holds 1x10x10; train one"):
        read(keep(classifier, data), write_again(10))
    with pytest.raises(DataError, match=r"1x12x12, .* holds 1x10x10"):
        read(keep(random_extractor(data.shape), data), write_again(10))


@pytest.fixture
def write_again(tmp_path: Path) -> Callable[[int], DataSet]:
    """Return ``write_again(size)``: another data set of grey squares."""

    def write(size: int) -> DataSet:
        out = tmp_path / f"other{size}"
        if not out.exists():
            images = np.random.default_rng(5).integers(0, 256, (40, 1, size, size), dtype=np.uint8)
            splits = {"train": [(images, np.arange(40) % 2)]}
            write_dataset(out, splits, shape=(1, size, size), class_names=["a", "b"], source="test")
        return DataSet.open(out)

    return write


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "other weights", "no json", "wrong kind", "no key"])
def test_a_damaged_extractor_is_refused_and_can_be_made_again(
    damage: str, classifier: Extractor, data: DataSet, tmp_path: Path
) -> None:
    path = kept_at(classifier, data)
    weights, facts = path / "weights.safetensors", path / "extractor.json"
    content, told = weights.read_bytes(), json.loads(facts.read_text())
    match damage:
        case "flip":
            weights.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        case "truncate":
            weights.write_bytes(content[: len(content) // 2])
        case "missing":
            weights.unlink()
        case "other weights":
            weights.write_bytes((kept_at(random_extractor(data.shape), data) / "weights.safetensors").read_bytes())
        case "no json":
            facts.write_text(facts.read_text()[:50])
        case "wrong kind":
            facts.write_text(json.dumps(told | {"kind": "dino"}))
        case "no key":
            facts.write_text(json.dumps({key: value for key, value in told.items() if key != "shape"}))
    with pytest.raises(DataError, match=r"is damaged \(.*train it again"):
        read(path, data)
    keep(classifier, data)
    assert read(path, data).facts == classifier.facts


def test_a_newer_format_is_refused_by_name(classifier: Extractor, data: DataSet) -> None:
    path = kept_at(classifier, data)
    told = json.loads((path / "extractor.json").read_text())
    (path / "extractor.json").write_text(json.dumps(told | {"version": 2}))
    with pytest.raises(DataError, match="newer Shoal"):
        read(path, data)


def test_facts_are_what_the_name_is_made_of(classifier: Extractor) -> None:
    assert classifier.id == f"classifier:{classifier.facts.hash}"
    assert classifier.distance_name == f"fd/{classifier.id}"
    assert replace(classifier.facts, kind="inception").id.startswith("inception:")
