from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config, presets, read_config
from shoal.data import DataSet
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.loop import Tick, check
from shoal.noise import Noise
from shoal.objectives import Batch, Gan
from shoal.objectives.adversarial import LOSSES, LossName
from shoal.objectives.augment import AugmentationName, augment
from shoal.objectives.penalties import one_centred_gradient, squared_gradient
from shoal.optim import build_optimizer
from shoal.run import Run
from shoal.state import State, build_objective
from shoal.world import World

SHAPE = (1, 28, 28)
NUM, CLASSES = 12, 4
MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]


def settings(**objective: Any) -> RunConfig:
    """Return a small convolutional GAN with these keys of its objective."""
    return build_config(
        {
            "objective": {"name": "gan", **objective},
            "nets": {"name": "conv", "latent": 5, "width": 4, "norm": "none", "activation": "silu"},
            "batch": NUM,
            "data": {"range": "symmetric"},
            "optim": {"lr": 1e-3, "betas": [0.5, 0.9]},
        }
    )


def gan(num_classes: int = 0, **objective: Any) -> Gan:
    return gan_of(settings(**objective), num_classes=num_classes)


def gan_of(config: RunConfig, shape: tuple[int, int, int] = SHAPE, num_classes: int = 0) -> Gan:
    model = build_objective(config, shape, num_classes)
    assert isinstance(model, Gan)
    return model


def batch(index: int = 0, rows: slice | None = None) -> Batch:
    images = 2 * torch.rand(NUM, *SHAPE, generator=torch.Generator().manual_seed(1)) - 1
    labels = torch.arange(NUM) * 7 % CLASSES
    if rows is None:
        return Batch(images=images, labels=labels, index=index)
    return Batch(images=images[rows], labels=labels[rows], index=index, rows=rows, size=NUM)


def noise(index: int = 0, rows: slice | None = None) -> Noise:
    return Noise(3, index, NUM, rows or slice(0, NUM))


def fakes(model: Gan, phase: str, labels: Tensor | None = None) -> Tensor:
    out: Tensor = model.nets["generator"](noise().normal(f"latent/{phase}", 5), labels)
    return torch.tanh(out)


def scores(model: Gan, images: Tensor, labels: Tensor | None = None) -> Tensor:
    out: Tensor = model.nets["discriminator"](images, labels)
    return out[:, 0]


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_each_phase_minimises_the_mean_of_its_loss(name: LossName) -> None:
    model = gan(loss=name)
    x = batch().images
    expected = LOSSES[name].discriminator(scores(model, x), scores(model, fakes(model, "discriminator")))
    loss, told = model.loss("discriminator", batch(), noise())
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(told["loss/discriminator"], expected)
    expected = LOSSES[name].generator(scores(model, x), scores(model, fakes(model, "generator")))
    loss, told = model.loss("generator", batch(), noise())
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(told["loss/generator"], expected)
    assert list(told) == ["loss/generator"]


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_are_reported_where_the_loss_has_some_else_raw_scores(name: LossName) -> None:
    model = gan(loss=name)
    real, fake = scores(model, batch().images), scores(model, fakes(model, "discriminator"))
    _, told = model.loss("discriminator", batch(), noise())
    if name in ("non_saturating", "minimax"):
        assert set(told) == {"loss/discriminator", "score/real", "score/fake"}
        torch.testing.assert_close(told["score/real"], torch.sigmoid(real))
        torch.testing.assert_close(told["score/fake"], torch.sigmoid(fake))
    else:
        assert set(told) == {"loss/discriminator", "critic/real", "critic/fake"}
        torch.testing.assert_close(told["critic/real"], real)
        torch.testing.assert_close(told["critic/fake"], fake)


def test_a_plain_gan_trains_as_one_written_by_hand() -> None:
    config = settings()
    model = gan_of(config)
    state = State.fresh(model, config)
    engine = Engine(model, state, config, World.local("cpu"))
    hand = gan_of(config)
    generator, discriminator = hand.nets["generator"], hand.nets["discriminator"]
    optimizers = {
        name: build_optimizer(config.optim, name, list(net.parameters()))
        for name, net in (("discriminator", discriminator), ("generator", generator))
    }
    for index in range(3):
        engine.step(batch(index), noise(index))
        for phase, optimizer in optimizers.items():
            optimizer.zero_grad()
            images = torch.tanh(generator(noise(index).normal(f"latent/{phase}", 5)))
            if phase == "discriminator":
                real, fake = discriminator(batch().images)[:, 0], discriminator(images.detach())[:, 0]
                (softplus(-real) + softplus(fake)).mean().backward()  # type: ignore[no-untyped-call]
            else:
                softplus(-discriminator(images)[:, 0]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, net in hand.nets.items():
        for one, other in zip(net.parameters(), model.nets[name].parameters(), strict=True):
            assert torch.equal(one, other)


# --- penalties ---------------------------------------------------------------------------------------------------

WEIGHTS: dict[str, Any] = {"r1": 0.5, "r2": 0.25, "gradient_penalty": 10.0}


def test_penalties_are_added_with_the_papers_weights() -> None:
    model, x = gan(loss="hinge", **WEIGHTS), batch().images.requires_grad_()
    y = fakes(model, "discriminator").detach().requires_grad_()
    position = noise().uniform("penalty/position", 1)
    expected = {
        "penalty/r1": squared_gradient(scores(model, x), x),
        "penalty/r2": squared_gradient(scores(model, y), y),
        "penalty/gradient": one_centred_gradient(lambda images: scores(model, images), x, y, position),
    }
    loss, told = model.loss("discriminator", batch(), noise())
    for name, values in expected.items():
        torch.testing.assert_close(told[name], values)
        assert values.min() > 0
    terms = [weight * values.mean() for weight, values in zip((0.25, 0.125, 10), expected.values(), strict=True)]
    torch.testing.assert_close(
        loss, LOSSES["hinge"].discriminator(scores(model, x), scores(model, y)).mean() + sum(terms)
    )
    generator_loss, told = model.loss("generator", batch(), noise())
    torch.testing.assert_close(
        generator_loss, LOSSES["hinge"].generator(y, scores(model, fakes(model, "generator"))).mean()
    )
    assert list(told) == ["loss/generator"]


@pytest.mark.parametrize(("key", "name"), [("r1", "r1"), ("r2", "r2"), ("gradient_penalty", "gradient")])
def test_each_penalty_comes_alone(key: str, name: str) -> None:
    only: dict[str, Any] = {key: 2.0}
    model = gan(**only)
    _, told = model.loss("discriminator", batch(), noise())
    assert [one for one in told if one.startswith("penalty/")] == [f"penalty/{name}"]


@pytest.mark.parametrize("every", [1, 3, 4])
def test_a_lazy_penalty_comes_every_so_many_batches_and_weighs_as_many_times_more(every: int) -> None:
    plain, model, seldom = gan(), gan(**WEIGHTS), gan(penalty_every=every, **WEIGHTS)
    for index in range(9):
        without, _ = plain.loss("discriminator", batch(index), noise())
        always, _ = model.loss("discriminator", batch(index), noise())
        loss, told = seldom.loss("discriminator", batch(index), noise())
        comes = index % every == 0
        assert any(name.startswith("penalty/") for name in told) == comes
        torch.testing.assert_close(loss - without, (always - without) * every if comes else torch.zeros(()))


def test_the_engine_counts_the_batches_of_a_lazy_penalty(make_run: MakeRun, finish: Finish) -> None:
    run = make_run("gan", "objective.r1=1", "objective.penalty_every=3", "report.every_samples=20")
    seen = ["penalty/r1" in tick.scalars for tick in finish(run)]
    assert seen == [index % 3 == 0 for index in range(10)]


def test_a_tick_tells_the_mean_of_a_lazy_penalty_over_the_batches_that_had_it(
    make_run: MakeRun, finish: Finish
) -> None:
    often = finish(make_run("gan", "objective.r1=1", "objective.penalty_every=3", "report.every_samples=20"))
    (tick,) = finish(
        make_run(
            "gan",
            "objective.r1=1",
            "objective.penalty_every=3",
            "report.every_samples=200",
            "checkpoint.every_samples=0",
        )
    )
    values = [one.scalars["penalty/r1"] for one in often if "penalty/r1" in one.scalars]
    assert len(values) == 4
    assert tick.scalars["penalty/r1"] == pytest.approx(sum(values) / 4, rel=1e-9)


def test_the_batch_itself_is_left_alone() -> None:
    model, given = gan(**WEIGHTS), batch()
    before = given.images.clone()
    model.loss("discriminator", given, noise())
    assert not given.images.requires_grad
    assert torch.equal(given.images, before)


VARIANTS: dict[str, dict[str, Any]] = {
    "r1": {"r1": 1.0},
    "lazy": {"r1": 1.0, "r2": 1.0, "penalty_every": 2, "loss": "relativistic"},
    "wgan-gp": {"loss": "wasserstein", "gradient_penalty": 10.0},
    "augmented": {"augment": ["color", "translation", "cutout"], "loss": "relativistic", "r1": 1.0},
    "conditional": {"conditional": True, "r1": 1.0, "gradient_penalty": 1.0, "loss": "hinge"},
}


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("index", [0, 1])
def test_every_parameter_of_the_trained_network_gets_a_gradient(variant: str, phase: str, index: int) -> None:
    model = gan(num_classes=CLASSES, **VARIANTS[variant])
    for name, net in model.nets.items():
        net.requires_grad_(name == phase)
    loss, _ = model.loss(phase, batch(index), noise(index))
    weights = list(model.nets[phase].parameters())
    gradients = torch.autograd.grad(loss, weights)  # raises where one is not used
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(int(gradient.abs().max() > 0) for gradient in gradients) >= len(weights) - 1


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_of_three_workers_join_to_that_of_one(variant: str, phase: str) -> None:
    model = gan(num_classes=CLASSES, **VARIANTS[variant])
    whole, told = model.loss(phase, batch(), noise())
    weights = list(model.nets[phase].parameters())
    expected = torch.autograd.grad(whole, weights)
    joined, gradients, parts = torch.zeros(()), [torch.zeros_like(weight) for weight in weights], []
    for rows in (slice(0, 3), slice(3, 8), slice(8, 12)):
        loss, part = model.loss(phase, batch(rows=rows), noise(rows=rows))
        share = batch(rows=rows).share
        joined = joined + loss.detach() * share
        for total, gradient in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
            total += gradient * share
        parts.append(part)
    torch.testing.assert_close(joined, whole)
    for found, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    for name, values in told.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), values)


# --- critic steps ------------------------------------------------------------------------------------------------


def test_the_generator_waits_for_its_critic() -> None:
    config = settings(loss="wasserstein", gradient_penalty=10, critic_steps=3)
    model = gan_of(config)
    assert [(phase.name, phase.every) for phase in model.phases] == [("discriminator", 1), ("generator", 3)]
    engine = Engine(model, State.fresh(model, config), config, World.local("cpu"))
    told = [engine.step(batch(index), noise(index)) for index in range(7)]
    assert ["loss/generator" in one for one in told] == [index % 3 == 0 for index in range(7)]
    assert all("loss/discriminator" in one for one in told)
    assert [phase.every for phase in Gan.phases] == [1, 1]
    assert [phase.every for phase in gan().phases] == [1, 1]


# --- augmentation ------------------------------------------------------------------------------------------------

KINDS: tuple[AugmentationName, ...] = ("color", "translation", "cutout")


def test_both_kinds_of_images_are_changed_in_both_phases_by_draws_of_their_own() -> None:
    model = gan(loss="relativistic", augment=list(KINDS))
    x, loss = batch().images, LOSSES["relativistic"]

    def changed(images: Tensor, purpose: str) -> Tensor:
        return scores(model, augment(images, KINDS, noise(), f"augment/{purpose}", "symmetric"))

    real = changed(x, "discriminator/real")
    fake = changed(fakes(model, "discriminator"), "discriminator/fake")
    found, told = model.loss("discriminator", batch(), noise())
    torch.testing.assert_close(found, loss.discriminator(real, fake).mean())
    torch.testing.assert_close(told["critic/real"], real)
    torch.testing.assert_close(told["critic/fake"], fake)
    real = changed(x, "generator/real")
    fake = changed(fakes(model, "generator"), "generator/fake")
    found, _ = model.loss("generator", batch(), noise())
    torch.testing.assert_close(found, loss.generator(real, fake).mean())


def test_the_gradient_penalty_is_taken_at_the_images_that_the_discriminator_saw() -> None:
    model = gan(r1=1, augment=["translation"])
    x = augment(batch().images, ("translation",), noise(), "augment/discriminator/real", "symmetric").requires_grad_()
    _, told = model.loss("discriminator", batch(), noise())
    torch.testing.assert_close(told["penalty/r1"], squared_gradient(scores(model, x), x))


def test_samples_are_not_augmented() -> None:
    plain, changed = gan(), gan(augment=list(KINDS))
    assert torch.equal(plain.sample(NUM, noise()), changed.sample(NUM, noise()))


# --- classes -----------------------------------------------------------------------------------------------------


def test_generated_images_have_the_classes_of_the_real_ones_beside_them() -> None:
    model, labels = gan(num_classes=CLASSES, conditional=True), batch().labels
    real, fake = scores(model, batch().images, labels), scores(model, fakes(model, "discriminator", labels), labels)
    _, told = model.loss("discriminator", batch(), noise())
    torch.testing.assert_close(told["score/real"], torch.sigmoid(real))
    torch.testing.assert_close(told["score/fake"], torch.sigmoid(fake))
    loss, _ = model.loss("generator", batch(), noise())
    torch.testing.assert_close(loss, softplus(-scores(model, fakes(model, "generator", labels), labels)).mean())


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_other_labels_give_another_loss_only_to_a_conditional_gan(phase: str) -> None:
    given = batch()
    assert given.labels is not None
    other = replace(given, labels=given.labels.roll(1))
    for model, knows in ((gan(num_classes=CLASSES, conditional=True), True), (gan(num_classes=CLASSES), False)):
        one, two = (model.loss(phase, labelled, noise())[0] for labelled in (given, other))
        assert torch.equal(one, two) != knows


def test_without_labels_the_samples_go_through_the_classes() -> None:
    model = gan(num_classes=CLASSES, conditional=True)
    cycled = model.sample(NUM, noise())
    assert torch.equal(cycled, model.sample(NUM, noise(), torch.arange(NUM) % CLASSES))
    asked = model.sample(NUM, noise(), torch.full((NUM,), 2))
    for index in range(NUM):
        assert torch.allclose(asked[index], cycled[index]) == (index % CLASSES == 2)


def test_a_gan_without_classes_takes_no_notice_of_labels() -> None:
    model = gan(num_classes=CLASSES)
    assert torch.equal(model.sample(NUM, noise()), model.sample(NUM, noise(), torch.zeros(NUM, dtype=torch.int64)))
    unlabelled = replace(batch(), labels=None)
    assert torch.equal(model.loss("generator", unlabelled, noise())[0], model.loss("generator", batch(), noise())[0])
    assert not model.needs_labels
    assert gan(num_classes=CLASSES, conditional=True).needs_labels


def test_classes_are_refused_where_the_data_set_has_none() -> None:
    with pytest.raises(
        ConfigError,
        match=r"objective.conditional=true needs the class of every image, and this data set has no labels; import it"
        r" with labels, or set objective.conditional=false",
    ):
        gan(conditional=True)


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.loss=relativistic", "objective.r1=1", "objective.r2=1", "objective.penalty_every=3"],
        ["objective.loss=wasserstein", "objective.gradient_penalty=10", "objective.critic_steps=3"],
        ["objective.conditional=true", "objective.augment=[color, cutout]", "objective.loss=hinge"],
        ["nets.spectral_norm=true", "objective.loss=hinge"],
    ],
    ids=["relativistic", "wgan-gp", "conditional", "spectral"],
)
def test_a_resumed_run_equals_one_that_never_stopped(
    make_run: MakeRun,
    finish: Finish,
    newest: Callable[[Run], Checkpoint],
    differing: Callable[..., list[str]],
    overrides: list[str],
) -> None:
    straight, stopped = make_run("gan", *overrides), make_run("gan", *overrides)
    finish(straight)
    finish(stopped, stop_after=5)
    assert newest(stopped).samples == 100
    finish(stopped, resume=newest(stopped))
    assert differing(newest(straight).tensors(), newest(stopped).tensors()) == []


GAN_PRESETS = [name for name, path in presets().items() if "name: gan" in path.read_text()]


def test_every_preset_of_the_family_is_there() -> None:
    assert set(GAN_PRESETS) == {"seed-gan", "dcgan", "dcgan-64", "wgan-gp", "sngan", "r3gan", "cgan"}


@pytest.mark.parametrize("name", GAN_PRESETS)
def test_presets_train_without_a_caution(name: str) -> None:
    width = "nets.hidden=[16]" if name == "seed-gan" else "nets.width=4"
    config = read_config(name, [width, "nets.latent=5", "batch=12"])
    shape = (3, 64, 64) if name == "dcgan-64" else SHAPE
    model = gan_of(config, shape, CLASSES)
    assert model.cautions(config.batch) == []
    assert config.ema.half_life_samples > 0 or name == "seed-gan"
    engine = Engine(model, State.fresh(model, config), config, World.local("cpu"))

    def weights() -> dict[str, Tensor]:
        return {f"{at}.{key}": x.clone() for at, net in model.nets.items() for key, x in net.named_parameters()}

    before = weights()
    images = 2 * torch.rand(12, *shape, generator=torch.Generator().manual_seed(1)) - 1
    for index in range(2):
        told = engine.step(Batch(images=images, labels=torch.arange(12) % 4, index=index), noise(index))
        assert all(values.isfinite().all() for values in told.values())
    still = {key for key, weight in weights().items() if torch.equal(weight, before[key])}
    # The bias of the score has no slope where only differences count, or where no hinge has been passed yet.
    assert still <= {[key for key in before if key.startswith("discriminator.") and key.endswith(".bias")][-1]}
    assert model.sample(NUM, noise()).shape == (NUM, *shape)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "hing"}, r"objective.loss='hing': .*'hinge'"),
        ({"augment": ["colour"]}, r"objective.augment.0='colour': .*'color'"),
        ({"augment": ["color", "color"]}, r"objective.augment: \[color, color\] names one twice; name each at most"),
        ({"augment": "color"}, r"objective.augment='color': must be a list, e.g. objective.augment=\[color\]"),
        ({"penalty_every": 0}, r"objective.penalty_every=0: should be greater than 0"),
        ({"critic_steps": 0}, r"objective.critic_steps=0: should be greater than 0"),
        ({"r1": -1}, r"objective.r1=-1: should be greater than or equal to 0"),
        ({"conditional": 3}, r"objective.conditional=3: "),
        (
            {"gradient_penalti": 3},
            r"unknown key objective.gradient_penalti \(did you mean 'objective.gradient_penalty'",
        ),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_phases_may_have_rates_of_their_own_whatever_the_critic_steps() -> None:
    config = read_config("wgan-gp", ["optim.phases.generator.lr=1e-3"])
    assert config.optim.phases["generator"].lr == 1e-3
    with pytest.raises(ConfigError, match=r"optim.phases.critic"):
        read_config("wgan-gp", ["optim.phases.critic.lr=1e-3"])


def test_what_is_known_to_fail_is_told_before_it_runs(small_data: Path) -> None:
    data = DataSet.open(small_data)

    def told(*overrides: str) -> list[str]:
        return check(read_config("dcgan", ["nets.width=4", *overrides]), data, 1)

    assert told() == []
    assert told("objective.r1=1", "nets.norm=group") == []
    (caution,) = told("objective.r2=1", "nets.norm=batch")
    assert caution.startswith("objective.r2 asks for the gradient of each image's score by that image alone, and")
    assert caution.endswith("nets.norm=batch mixes the images of a batch; use nets.norm=group or none")
    (caution,) = told("objective.loss=wasserstein", "nets.norm=group")
    assert caution.startswith("objective.loss=wasserstein grows without bound")
    assert told("objective.loss=wasserstein", "nets.norm=group", "objective.gradient_penalty=10") == []
    assert told("objective.loss=wasserstein", "nets.norm=group", "nets.spectral_norm=true") == []
