from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from shoal.config import RunConfig
from shoal.engine import Engine
from shoal.noise import Noise
from shoal.objectives import Batch
from shoal.optim import base_learning_rate, build_optimizer, clip_norm, set_learning_rate
from shoal.schedule import OptimConfig
from shoal.state import State, build_objective
from shoal.world import World

Tiny = Callable[..., RunConfig]
SHAPE = (1, 28, 28)

REFERENCES: dict[str, Callable[[Iterable[nn.Parameter], OptimConfig], torch.optim.Optimizer]] = {
    "adam": lambda weights, optim: torch.optim.Adam(
        weights, optim.lr, optim.betas, optim.eps, weight_decay=optim.weight_decay
    ),
    "adamw": lambda weights, optim: torch.optim.AdamW(
        weights, optim.lr, optim.betas, optim.eps, weight_decay=optim.weight_decay
    ),
    "sgd": lambda weights, optim: torch.optim.SGD(weights, optim.lr, optim.betas[0], weight_decay=optim.weight_decay),
}


def images(batch: int, k: int) -> Tensor:
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(k))


class Bench:
    """An engine on a fresh objective, and its steps."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.objective = build_objective(config, SHAPE)
        self.state = State.fresh(self.objective, config)
        self.engine = Engine(self.objective, self.state, config, World.local("cpu"))

    def step(self) -> None:
        batch, k = self.config.batch, self.state.batches
        noise = Noise(self.config.seed, k, batch, slice(0, batch))
        self.engine.step(Batch(images=images(batch, k), labels=None), noise)

    def weights(self, net: str) -> Tensor:
        return torch.cat([weight.detach().flatten().clone() for weight in self.objective.nets[net].parameters()])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("clip", ["null", "0.05"])
def test_a_step_is_what_plain_torch_does(tiny: Tiny, name: str, clip: str) -> None:
    config = tiny(
        "autoencoder",
        f"optim.name={name}",
        f"optim.clip={clip}",
        "optim.weight_decay=0.02",
        "optim.betas=[0.8, 0.95]",
        "optim.schedule=cosine",
        "optim.warmup_samples=40",
        "ema.half_life_samples=0",
    )
    bench = Bench(config)
    plain = build_objective(config, SHAPE)
    encoder, decoder = plain.nets["encoder"], plain.nets["decoder"]
    optimizer = REFERENCES[name]([*encoder.parameters(), *decoder.parameters()], config.optim)
    for k in range(6):
        bench.step()
        x = images(config.batch, k)
        torch.autograd.backward(nn.functional.mse_loss(torch.sigmoid(decoder(encoder(x))), x))
        if config.optim.clip:
            for net in (encoder, decoder):
                nn.utils.clip_grad_norm_(net.parameters(), config.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * config.optim.factor((k + 1) * config.batch, config.duration_samples)
        optimizer.step()
        optimizer.zero_grad()
    for net_name, trained in plain.nets.items():
        expected = torch.cat([weight.detach().flatten() for weight in trained.parameters()])
        torch.testing.assert_close(bench.weights(net_name), expected, rtol=1e-5, atol=2e-6)


def test_clipping_limits_the_gradient_of_each_network(tiny: Tiny) -> None:
    bench = Bench(tiny("autoencoder", "optim.name=sgd", "optim.betas=[0, 0]", "optim.lr=1", "optim.clip=1e-3"))
    before = {net: bench.weights(net) for net in bench.objective.nets}
    bench.step()
    for net, old in before.items():  # plain gradient descent at rate 1: the step is the gradient
        assert (bench.weights(net) - old).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_phase_can_have_its_own_clip(tiny: Tiny) -> None:
    bench = Bench(
        tiny(
            "gan",
            "optim.name=sgd",
            "optim.betas=[0, 0]",
            "optim.lr=1",
            "optim.clip=1e-3",
            "optim.phases.generator.clip=1e-4",
        )
    )
    before = {net: bench.weights(net) for net in bench.objective.nets}
    bench.step()
    assert (bench.weights("discriminator") - before["discriminator"]).norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert (bench.weights("generator") - before["generator"]).norm().item() == pytest.approx(1e-4, rel=1e-2)


def test_the_rate_of_a_phase_is_the_one_that_its_optimizer_uses(tiny: Tiny) -> None:
    same = tiny("gan", "optim.name=sgd", "optim.betas=[0, 0]", "optim.lr=0.1")
    slower = tiny("gan", "optim.name=sgd", "optim.betas=[0, 0]", "optim.lr=0.1", "optim.phases.discriminator.lr=0.025")
    moved = []
    for config in (same, slower):
        bench = Bench(config)
        before = bench.weights("discriminator")
        bench.step()
        moved.append(bench.weights("discriminator") - before)
        assert bench.engine.learning_rates() == pytest.approx(
            {"optim/lr_generator": 0.1, "optim/lr_discriminator": 0.1 if config is same else 0.025}
        )
    torch.testing.assert_close(moved[1], moved[0] / 4, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_phase_can_have_its_own_averages(name: str) -> None:
    optim = OptimConfig.model_validate(
        {"name": name, "betas": (0.9, 0.99), "phases": {"slow": {"betas": (0.5, 0.6)}, "fast": {"lr": 1.0}}}
    )
    weights = [nn.Parameter(torch.ones(2))]
    for phase, betas in (("slow", (0.5, 0.6)), ("fast", (0.9, 0.99)), ("other", (0.9, 0.99))):
        group = build_optimizer(optim, phase, weights).param_groups[0]
        assert group["momentum"] == betas[0] if name == "sgd" else group["betas"] == betas


def test_what_a_phase_does_not_say_is_what_all_do() -> None:
    optim = OptimConfig.model_validate({"lr": 0.5, "clip": 2.0, "phases": {"a": {"lr": 0.25}, "b": {"clip": 1.0}}})
    assert [base_learning_rate(optim, phase) for phase in "abc"] == [0.25, 0.5, 0.5]
    assert [clip_norm(optim, phase) for phase in "abc"] == [2.0, 1.0, 2.0]
    assert clip_norm(OptimConfig(), "a") is None


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_learning_rate_is_a_tensor_that_is_written_in_place(name: str) -> None:
    optimizer = build_optimizer(OptimConfig.model_validate({"name": name}), "x", [nn.Parameter(torch.ones(2))])
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor)
    set_learning_rate(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.125


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_the_schedule_by_the_sample_clock(tiny: Tiny, shape: str) -> None:
    config = tiny("autoencoder", f"optim.schedule={shape}", "optim.warmup_samples=60", "optim.final_factor=0.1")
    bench = Bench(config)
    for _ in range(config.duration_samples // config.batch):
        bench.step()
        expected = config.optim.lr * config.optim.factor(bench.state.samples, config.duration_samples)
        assert bench.engine.learning_rates() == pytest.approx({"optim/lr": expected})
    last = 1.0 if shape == "constant" else 0.1
    assert bench.engine.learning_rates() == pytest.approx({"optim/lr": config.optim.lr * last})


def test_a_last_batch_past_the_end_uses_the_last_rate(tiny: Tiny) -> None:
    bench = Bench(tiny("autoencoder", "optim.schedule=linear", "optim.final_factor=0.5", "duration_samples=50"))
    for _ in range(3):
        bench.step()
    assert bench.state.samples == 60
    assert bench.engine.learning_rates() == pytest.approx({"optim/lr": 0.5e-2})


def test_batches_of_half_the_size_have_the_same_rates_at_the_same_samples(tiny: Tiny) -> None:
    rates = []
    for batch in (20, 10):
        bench = Bench(tiny("autoencoder", f"batch={batch}", "optim.schedule=cosine", "optim.warmup_samples=40"))
        seen = {}
        while bench.state.samples < 200:
            bench.step()
            seen[bench.state.samples] = bench.engine.learning_rates()["optim/lr"]
        rates.append(seen)
    assert {samples: rates[1][samples] for samples in rates[0]} == rates[0]
