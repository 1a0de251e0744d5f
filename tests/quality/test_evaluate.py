import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from shoal.data import DataSet
from shoal.data.write import write_dataset
from shoal.errors import DataError, RunError
from shoal.model import Model
from shoal.noise import Noise
from shoal.objectives import HasCodebook, HasLikelihood
from shoal.pixels import to_float
from shoal.quality import evaluate as evaluation
from shoal.quality import images as blocks
from shoal.quality.evaluate import Evaluation, evaluate
from shoal.quality.extractor import Extractor, random_extractor

Untrained = Callable[..., Model]


def pixels(data: DataSet, split: str = "test") -> NDArray[np.uint8]:
    return data.rows(split, 0, data.num_rows(split))


# --- reconstructions ---------------------------------------------------------------------------------------------


def reconstruction_by_hand(model: Model, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Return the three measures of every image as their definitions say, in float64."""
    x = images.astype(np.float64) / 255
    y = model.reconstruct(torch.from_numpy(images.copy())).numpy().astype(np.float64)
    mse = ((x - y) ** 2).mean(axis=(1, 2, 3))
    ssim = [structural_similarity(a[0], b[0]) for a, b in zip(x, y, strict=True)]
    return {"quality/mse": mse, "quality/psnr": 10 * np.log10(1 / mse), "quality/ssim": np.array(ssim)}


def structural_similarity(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return Wang et al. 2004, eq. 13, in the Gaussian window of their section III.C around each pixel."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()
    x, y = (np.pad(image, 5, mode="reflect") for image in (x, y))
    found = []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            a, b = (image[top : top + 11, left : left + 11] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            likeness = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
            found.append(likeness / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return float(np.mean(found))


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
@pytest.mark.parametrize(("split", "num"), [("test", 64), ("train", 96)])
def test_measures_are_what_their_definitions_say(
    untrained: Untrained, corner_data: DataSet, split: str, num: int, pixel_range: str
) -> None:
    model = untrained("autoencoder", corner_data, f"data.range={pixel_range}")
    found = evaluate(model, corner_data, split)
    by_hand = reconstruction_by_hand(model, pixels(corner_data, split))
    assert (found.split, found.num_samples, found.samples) == (split, num, 0)
    assert found.fingerprint == corner_data.fingerprint
    assert found.metrics == pytest.approx({name: values.mean() for name, values in by_hand.items()}, rel=1e-6)
    for name, values in by_hand.items():
        details = found.details[name]
        assert details["n"] == num
        width = 2 * 1.96 * values.std() / np.sqrt(num)
        assert details["high"] - details["low"] == pytest.approx(width, rel=0.15)
        assert details["low"] < found.metrics[name] < details["high"]
    assert found.extractor is None


def test_every_class_has_measures_of_its_own(untrained: Untrained, corner_data: DataSet) -> None:
    model = untrained("autoencoder", corner_data)
    found = evaluate(model, corner_data)
    labels = corner_data.labels("test")
    by_hand = reconstruction_by_hand(model, pixels(corner_data))
    for number, name in enumerate(corner_data.class_names or []):
        of_class = {key.removeprefix("quality/"): values[labels == number].mean() for key, values in by_hand.items()}
        assert found.per_class[name] == pytest.approx({"n": 16, **of_class}, rel=1e-6)


@pytest.mark.parametrize("block", [1, 5, 63, 64, 65])
def test_measures_do_not_depend_on_how_the_split_is_cut(
    untrained: Untrained, corner_data: DataSet, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained("autoencoder", corner_data)
    whole = evaluate(model, corner_data).metrics
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(blocks, "BLOCK_IMAGES", block)
    found = evaluate(model, corner_data, progress=lambda *progress: told.append(progress))
    assert found.metrics == pytest.approx(whole, rel=1e-6)
    done = [done for _, done, _ in told]
    assert done[0] == 0
    assert done[-1] == 64
    assert {later - earlier for earlier, later in pairwise(done)} <= {block, 64 % block, 64}
    assert {(what, total) for what, _, total in told} == {("reconstructing", 64)}


def test_an_exact_copy_has_a_finite_psnr(untrained: Untrained, corner_data: DataSet) -> None:
    found = evaluate(untrained("copy", corner_data, "data.range=symmetric"), corner_data).metrics
    assert found["quality/psnr"] == 100
    assert found["quality/mse"] < 1e-14
    assert found["quality/ssim"] == pytest.approx(1)


def test_a_known_error_has_a_known_psnr(untrained: Untrained, corner_data: DataSet) -> None:
    found = evaluate(untrained("copy", corner_data, "objective.off=0.1"), corner_data).metrics
    assert found["quality/psnr"] == pytest.approx(20, rel=1e-6)
    off = evaluate(untrained("copy", corner_data, "objective.off=0.1", "data.range=symmetric"), corner_data).metrics
    assert off["quality/psnr"] == pytest.approx(20 + 20 * np.log10(2), rel=1e-6)  # half as much in [0, 1]


def test_small_images_have_no_ssim(untrained: Untrained, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 10, 30), dtype=np.uint8)
    write_dataset(tmp_path / "d", {"test": [(images, None)]}, shape=(1, 10, 30), class_names=None, source="test")
    data = DataSet.open(tmp_path / "d")
    found = evaluate(untrained("autoencoder", data), data)
    assert set(found.metrics) == {"quality/mse", "quality/psnr"}
    assert found.per_class == {}


# --- likelihoods -------------------------------------------------------------------------------------------------


def drawn(num: int, purpose: str, block: int) -> Tensor:
    sizes = [min(block, num - start) for start in range(0, num, block)]
    return torch.cat([Noise(0, index, block, slice(0, size)).normal(purpose, 4) for index, size in enumerate(sizes)])


def test_likelihoods_are_what_their_definitions_say(untrained: Untrained, corner_data: DataSet) -> None:
    model = untrained("vae", corner_data)
    found = evaluate(model, corner_data, importance_samples=17, extractor=random_extractor(corner_data.shape))
    objective = model.objective
    assert isinstance(objective, HasLikelihood)
    with torch.no_grad():
        x = to_float(torch.from_numpy(pixels(corner_data)), "unit")
        mean, log_variance = posterior = objective.posterior(x)
        bound = objective.log_weights(x, posterior, drawn(64, "posterior", 500))
        weights = torch.stack(
            [objective.log_weights(x, posterior, drawn(64, f"importance/{k}", 50)) for k in range(17)]
        )
    standard = Normal(torch.zeros(4), torch.ones(4))
    kl = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), standard).sum(1)
    nll = -(weights.double().logsumexp(0) - np.log(17))
    for name, values in (("elbo", bound), ("kl", kl), ("nll", nll)):
        assert found.metrics[f"quality/{name}"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert found.details[f"quality/{name}"]["n"] == 64
    assert found.per_class["south-east"]["elbo"] == pytest.approx(bound[48:].mean().item(), rel=1e-5)
    assert found.details["quality/active_units"] == {"n": 64, "of": 4}
    assert {"fd", "kd"} <= {name.partition("/")[0] for name in found.metrics}  # it generates, too


def test_more_importance_samples_come_nearer_to_the_truth(untrained: Untrained, corner_data: DataSet) -> None:
    model = untrained("vae", corner_data)
    given: dict[str, Any] = {"extractor": random_extractor(corner_data.shape)}
    found = [evaluate(model, corner_data, importance_samples=k, **given).metrics["quality/nll"] for k in (1, 5, 50)]
    assert found == sorted(found, reverse=True)


def test_the_likelihood_is_of_fewer_images_and_says_so(
    untrained: Untrained, corner_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LIKELIHOOD_IMAGES", 10)
    found = evaluate(untrained("vae", corner_data), corner_data, extractor=random_extractor(corner_data.shape))
    assert found.details["quality/nll"]["n"] == 10
    assert found.details["quality/elbo"]["n"] == found.num_samples == 64


def test_units_that_say_nothing_are_not_active(untrained: Untrained, corner_data: DataSet) -> None:
    model = untrained("vae", corner_data)
    last = [layer for layer in model.objective.nets["encoder"].modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.weight *= 100  # every unit says something
        last.weight[1:3] = 0  # but for the means of two
    found = evaluate(model, corner_data, importance_samples=1, extractor=random_extractor(corner_data.shape))
    assert found.metrics["quality/active_units"] == 2


# --- codes -------------------------------------------------------------------------------------------------------


def test_codes_are_counted(untrained: Untrained, grey: DataSet) -> None:
    model = untrained("vq_vae", grey)
    objective = model.objective
    assert isinstance(objective, HasCodebook)
    with torch.no_grad():
        entries = objective.nets["codebook"].get_buffer("vectors")
        entries += 1e3  # out of reach, but for the first seven
        entries[:7] = objective.nets["encoder"](torch.rand(1, 1, 28, 28)).flatten(2)[0].T[:7]
    found = evaluate(model, grey).metrics
    with torch.no_grad():
        codes = objective.code_indices(to_float(torch.from_numpy(pixels(grey)), "unit")).numpy()
    counts = np.bincount(codes.ravel(), minlength=32)
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum()
    assert 1 < (counts > 0).sum() <= 7
    assert found["quality/code_usage"] == (counts > 0).mean()
    assert found["quality/perplexity"] == pytest.approx(2**entropy)
    assert found["quality/bits_per_image"] == codes.shape[1] * 5
    assert found["quality/coded_bits_per_image"] == pytest.approx(codes.shape[1] * entropy)
    assert "quality/mse" in found


# --- generated images --------------------------------------------------------------------------------------------


def short(found: Evaluation) -> dict[str, float]:
    """Return the measures without their extractor's name."""
    return {name.partition("/")[0]: value for name, value in found.metrics.items()}


def test_a_perfect_generator_is_as_good_as_real_images(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor
) -> None:
    found = evaluate(untrained("painter", corner_data), corner_data, extractor=classifier)
    names = ["fd", "kd", "is", "agreement", "precision", "recall", "density", "coverage"]
    assert list(found.metrics) == [f"{name}/{classifier.id}" for name in names]
    measures = short(found)
    details = {name.partition("/")[0]: values for name, values in found.details.items()}
    assert {values["n"] for values in details.values()} == {64}
    assert details["fd"]["ratio"] == pytest.approx(measures["fd"] / details["fd"]["floor"])
    assert details["fd"]["ratio"] < 3
    assert details["kd"]["low"] < 0 < details["kd"]["high"]
    assert measures["agreement"] == 1
    assert measures["is"] == pytest.approx(4, rel=0.02)
    assert details["is"]["floor"] == pytest.approx(4, rel=0.05)
    for name in ("precision", "recall", "coverage"):
        assert measures[name] > 0.7
        assert abs(measures[name] - details[name]["floor"]) < 0.25
    assert found.extractor is not None
    assert (found.extractor["id"], found.extractor["kind"]) == (classifier.id, "classifier")
    assert found.extractor["accuracy"] == 1.0
    of_class = found.per_class["north-east"]
    assert (of_class["share"], of_class["real_share"], of_class["agreement"]) == (0.25, 0.25, 1)
    assert 0 < of_class["fd"] < 10 * of_class["fd_floor"]


def test_a_generator_that_does_not_listen_agrees_by_chance(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor
) -> None:
    found = evaluate(untrained("painter", corner_data, "objective.fault=deaf"), corner_data, extractor=classifier)
    assert 0.05 < short(found)["agreement"] < 0.5
    good = evaluate(untrained("painter", corner_data), corner_data, extractor=classifier)
    name = "south-west"
    assert found.per_class[name]["fd"] > 3 * good.per_class[name]["fd"]


def test_a_collapsed_generator_is_told_by_every_measure_but_precision(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor
) -> None:
    good = evaluate(untrained("painter", corner_data), corner_data, extractor=classifier)
    found = evaluate(untrained("painter", corner_data, "objective.fault=collapsed"), corner_data, extractor=classifier)
    assert [values["share"] for values in found.per_class.values()] == [1, 0, 0, 0]
    measures, others = short(found), short(good)
    assert measures["fd"] > 10 * others["fd"]
    assert measures["kd"] > 0.1 > others["kd"]
    assert measures["is"] == pytest.approx(1, rel=0.02)
    assert measures["recall"] < 0.5 < others["recall"]
    assert measures["coverage"] < 0.5 < others["coverage"]
    assert measures["precision"] > 0.7


def test_an_unconditional_generator_is_asked_for_nothing(untrained: Untrained, corner_data: DataSet) -> None:
    extractor = random_extractor(corner_data.shape)
    found = evaluate(untrained("gan", corner_data), corner_data, extractor=extractor)
    assert [name.partition("/")[0] for name in found.metrics] == [
        "fd",
        "kd",
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    assert found.per_class == {}


def test_the_default_extractor_is_used_where_none_is_given(untrained: Untrained, corner_data: DataSet) -> None:
    found = evaluate(untrained("gan", corner_data), corner_data)
    assert found.extractor is not None
    assert found.extractor["id"] == random_extractor(corner_data.shape).id


def test_a_conditional_gan_is_measured_too(untrained: Untrained, grey: DataSet) -> None:
    found = evaluate(untrained("cgan", grey), grey)
    assert set(found.per_class["north-west"]) == {"fd", "fd_floor"}


def test_images_without_a_class_ask_for_each_in_turn(
    untrained: Untrained, tmp_path: Path, paint: Callable[..., Any], classifier: Extractor
) -> None:
    labels = np.arange(40) % 4
    splits = {"test": [(paint(labels, 12, 3), np.where(labels == 3, -1, labels))]}
    names = ["north-west", "north-east", "south-west", "south-east"]
    write_dataset(tmp_path / "some", splits, shape=(1, 12, 12), class_names=names, source="test")
    data = DataSet.open(tmp_path / "some")
    with pytest.raises(DataError, match=rf"{classifier.id} was made for the data set .*corners.* not for .*some"):
        evaluate(untrained("painter", data), data, extractor=classifier)
    anywhere = Extractor(classifier.net, replace(classifier.facts, fingerprint=None))
    found = evaluate(untrained("painter", data), data, extractor=anywhere)
    assert found.metrics[f"agreement/{classifier.id}"] == 1
    assert [values["share"] for values in found.per_class.values()] == [0.25] * 4


@pytest.mark.parametrize(("split", "num", "has_floor"), [("test", 64, True), ("train", 48, True), ("train", 49, False)])
def test_the_floor_is_of_other_real_images_or_left_out(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor, split: str, num: int, has_floor: bool
) -> None:
    found = evaluate(untrained("painter", corner_data), corner_data, split, num=num, extractor=classifier)
    details = found.details[f"fd/{classifier.id}"]
    assert ("floor" in details) == ("ratio" in details) == has_floor
    if has_floor:
        assert details["floor"] > 0.001  # not of the same images


def test_too_few_images_for_neighbours_are_measured_without(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor
) -> None:
    found = evaluate(untrained("painter", corner_data), corner_data, num=5, extractor=classifier)
    assert set(short(found)) == {"fd", "kd", "is", "agreement"}
    assert found.num_samples == 5


def test_fewer_images_are_generated_than_there_are_in_a_large_split(
    untrained: Untrained, corner_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "GENERATED_IMAGES", 20)
    extractor = random_extractor(corner_data.shape)
    gan = evaluate(untrained("gan", corner_data), corner_data, extractor=extractor)
    assert gan.num_samples == gan.details[f"fd/{extractor.id}"]["n"] == 20
    vae = evaluate(untrained("vae", corner_data), corner_data, extractor=extractor, importance_samples=1)
    assert vae.num_samples == vae.details["quality/mse"]["n"] == 64
    assert vae.details[f"fd/{extractor.id}"]["n"] == 20
    assert evaluate(untrained("gan", corner_data), corner_data, num=30).num_samples == 30


# --- what holds for all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["autoencoder", "vae", "gan"])
def test_measuring_leaves_no_trace_and_is_repeatable(untrained: Untrained, corner_data: DataSet, family: str) -> None:
    model = untrained(family, corner_data)
    for net in model.objective.nets.values():
        net.train()
    before = torch.random.get_rng_state()
    first = evaluate(model, corner_data, importance_samples=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(net.training for net in model.objective.nets.values())
    assert evaluate(model, corner_data, importance_samples=2) == first
    assert json.loads(json.dumps(asdict(first), allow_nan=False))["metrics"] == first.metrics


@pytest.mark.parametrize("family", ["autoencoder", "gan"])
@pytest.mark.parametrize(("split", "num"), [("test", 65), ("train", 100)])
def test_more_images_than_there_are_are_refused(
    untrained: Untrained, corner_data: DataSet, family: str, split: str, num: int
) -> None:
    rows = corner_data.num_rows(split)
    with pytest.raises(
        DataError, match=rf"{num} images were to be measured.*'{split}' of .* has {rows}; use --num {rows}"
    ):
        evaluate(untrained(family, corner_data), corner_data, split, num=num)


def test_one_image_has_no_distance(untrained: Untrained, corner_data: DataSet) -> None:
    with pytest.raises(DataError, match="a distance needs 2"):
        evaluate(untrained("gan", corner_data), corner_data, num=1)
    assert evaluate(untrained("autoencoder", corner_data), corner_data, num=1).num_samples == 1


def test_a_split_that_is_not_there_is_refused(untrained: Untrained, corner_data: DataSet) -> None:
    with pytest.raises(DataError, match=r"no split 'tets' \(did you mean 'test'\?\)"):
        evaluate(untrained("autoencoder", corner_data), corner_data, "tets")


def test_images_of_another_shape_are_refused(untrained: Untrained, corner_data: DataSet, grey: DataSet) -> None:
    with pytest.raises(RunError, match=r"trained on images of 1x12x12, .* holds 1x28x28"):
        evaluate(untrained("autoencoder", corner_data), grey)


def test_classes_that_the_model_does_not_know_are_refused(untrained: Untrained, corner_data: DataSet) -> None:
    with pytest.raises(RunError, match=r"the run knows 2 classes, .* has 4"):
        evaluate(untrained("painter", corner_data, num_classes=2), corner_data)


def test_a_model_that_has_diverged_is_refused(untrained: Untrained, corner_data: DataSet) -> None:
    with pytest.raises(RunError, match="makes images that are not numbers; it has diverged"):
        evaluate(untrained("painter", corner_data, "objective.fault=broken"), corner_data)
    with pytest.raises(RunError, match="quality/mse is inf after 0 samples; the run has diverged"):
        evaluate(untrained("copy", corner_data, "objective.off=1e39"), corner_data)
