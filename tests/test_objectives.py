import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from shoal.config import RunConfig, build_config, read_config
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.noise import Noise
from shoal.objectives import (
    OBJECTIVES,
    Batch,
    Generates,
    Objective,
    Phase,
    Reconstructs,
    load_installed,
    load_plugin,
    parse_objective,
    register,
)
from shoal.state import State, build_objective
from shoal.world import World

Tiny = Callable[..., RunConfig]
SHAPE = (1, 28, 28)
NUM = 8

PLUGIN = """
from typing import Literal

from shoal.objectives import Autoencoder
from shoal.objectives.autoencoder import AutoencoderConfig


class FishConfig(AutoencoderConfig):
    name: Literal["fish"] = "fish"
    fins: int = 2


class Fish(Autoencoder):
    Config = FishConfig
"""


def noise(num: int = NUM) -> Noise:
    return Noise(3, 5, num, slice(0, num))


def batch(num: int = NUM) -> Batch:
    return Batch(images=torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(1)), labels=None)


def logits_of(gan: Objective, phase: str) -> tuple[Tensor, Tensor]:
    """Return what the discriminator says of the real images and of those the phase's noise gives."""
    fakes = torch.tanh(gan.nets["generator"](noise().normal(f"latent/{phase}", 5)))
    return gan.nets["discriminator"](batch().images)[:, 0], gan.nets["discriminator"](fakes)[:, 0]


@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
def test_the_discriminator_minimises_its_cross_entropy(tiny: Tiny, kind: str) -> None:
    gan = build_objective(tiny("gan", f"objective.loss={kind}"), SHAPE)
    real, fake = logits_of(gan, "discriminator")
    expected = binary_cross_entropy_with_logits(real, torch.ones(NUM)) + binary_cross_entropy_with_logits(
        fake, torch.zeros(NUM)
    )
    loss, told = gan.loss("discriminator", batch(), noise())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(told["loss/discriminator"].mean(), expected)
    torch.testing.assert_close(told["score/real"], torch.sigmoid(real))
    torch.testing.assert_close(told["score/fake"], torch.sigmoid(fake))


def test_the_non_saturating_generator_wants_its_images_called_real(tiny: Tiny) -> None:
    gan = build_objective(tiny("gan"), SHAPE)
    _, fake = logits_of(gan, "generator")
    loss, told = gan.loss("generator", batch(), noise())
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(fake, torch.ones(NUM)))
    torch.testing.assert_close(told["loss/generator"].mean(), loss)


def test_the_minimax_generator_wants_its_images_not_called_generated(tiny: Tiny) -> None:
    gan = build_objective(tiny("gan", "objective.loss=minimax"), SHAPE)
    _, fake = logits_of(gan, "generator")
    loss, _ = gan.loss("generator", batch(), noise())
    torch.testing.assert_close(loss, -binary_cross_entropy_with_logits(fake, torch.zeros(NUM)))
    torch.testing.assert_close(loss, torch.log(1 - torch.sigmoid(fake)).mean())


@pytest.mark.parametrize("kind", ["non_saturating", "minimax"])
def test_losses_stay_finite_where_the_discriminator_is_sure(tiny: Tiny, kind: str) -> None:
    gan = build_objective(tiny("gan", f"objective.loss={kind}"), SHAPE)
    last = [layer for layer in gan.nets["discriminator"].modules() if isinstance(layer, nn.Linear)][-1]
    for sure in (-1e4, 1e4):
        with torch.no_grad():
            last.bias.fill_(sure)
        for phase in gan.phases:
            loss, _ = gan.loss(phase.name, batch(), noise())
            assert torch.isfinite(loss)


def test_each_phase_draws_latents_of_its_own(tiny: Tiny) -> None:
    gan = build_objective(tiny("gan"), SHAPE)
    assert not torch.equal(logits_of(gan, "generator")[1], logits_of(gan, "discriminator")[1])


def test_the_autoencoder_minimises_the_squared_error(tiny: Tiny) -> None:
    objective = build_objective(tiny("autoencoder"), SHAPE)
    assert isinstance(objective, Reconstructs)
    x = batch().images
    again = torch.sigmoid(objective.nets["decoder"](objective.nets["encoder"](x)))
    loss, told = objective.loss("reconstruction", batch(), noise())
    torch.testing.assert_close(loss, mse_loss(again, x))
    assert told["loss/reconstruction"].shape == (NUM,)
    torch.testing.assert_close(told["loss/reconstruction"], (again - x).square().mean((1, 2, 3)))
    torch.testing.assert_close(objective.decode(objective.encode(x)), again)


@pytest.mark.parametrize(("name", "low"), [("unit", 0), ("symmetric", -1)])
def test_images_come_out_in_the_range_of_the_run(tiny: Tiny, name: str, low: float) -> None:
    autoencoder = build_objective(tiny("autoencoder", f"data.range={name}"), SHAPE)
    gan = build_objective(tiny("gan", f"data.range={name}"), SHAPE)
    assert isinstance(autoencoder, Reconstructs)
    assert isinstance(gan, Generates)
    for images in (autoencoder.decode(100 * torch.randn(NUM, 4)), gan.sample(NUM, noise())):
        assert images.shape == (NUM, *SHAPE)
        assert images.min() >= low
        assert images.max() <= 1


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(-20, 20))
def test_a_sigmoid_code_lies_between_0_and_1(seed: int, shift: float) -> None:
    config = build_config(
        {
            "objective": {"name": "autoencoder", "code": "sigmoid"},
            "nets": {"name": "mlp", "latent": 3, "hidden": [4]},
            "seed": seed,
        }
    )
    objective = build_objective(config, (1, 4, 4))
    assert isinstance(objective, Reconstructs)
    code = objective.encode(torch.randn(5, 1, 4, 4) + shift)
    assert code.shape == (5, 3)
    assert ((code > 0) & (code < 1)).all()


def test_a_linear_code_is_what_the_encoder_says(tiny: Tiny) -> None:
    objective = build_objective(tiny("autoencoder"), SHAPE)
    assert isinstance(objective, Reconstructs)
    assert torch.equal(objective.encode(batch().images), objective.nets["encoder"](batch().images))


def test_the_seed_decides_the_first_weights(tiny: Tiny) -> None:
    def first(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())  # whatever the global generator holds
        objective = build_objective(tiny("gan", f"seed={seed}"), SHAPE)
        return {f"{name}.{key}": x for name, net in objective.nets.items() for key, x in net.state_dict().items()}

    for key, weight in first(1).items():
        assert torch.equal(weight, first(1)[key])
        assert not torch.equal(weight, first(2)[key])


def test_using_other_networks_leaves_the_original(tiny: Tiny) -> None:
    gan = build_objective(tiny("gan"), SHAPE)
    other = build_objective(tiny("gan", "seed=1"), SHAPE)
    before = dict(gan.nets)
    view = gan.using({"generator": other.nets["generator"]})
    assert dict(gan.nets) == before
    assert view.nets["generator"] is other.nets["generator"]
    assert view.nets["discriminator"] is gan.nets["discriminator"]
    assert type(view) is type(gan)
    assert isinstance(view, Generates)
    assert isinstance(gan, Generates)
    assert torch.equal(view.sample(NUM, noise()), other.using({}).sample(NUM, noise()))  # type: ignore[attr-defined]
    assert not torch.equal(view.sample(NUM, noise()), gan.sample(NUM, noise()))


def flat(net: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten().clone() for weight in net.parameters()])


@pytest.mark.parametrize(
    ("kind", "phase"), [("autoencoder", "reconstruction"), ("gan", "discriminator"), ("gan", "generator")]
)
def test_the_gradient_of_a_phase_reaches_only_the_networks_it_trains(tiny: Tiny, kind: str, phase: str) -> None:
    config = tiny(kind)
    objective = build_objective(config, SHAPE)
    objective.phases = [one for one in objective.phases if one.name == phase]
    trains = set(objective.phases[0].trains)
    reached: set[str] = set()
    for name, net in objective.nets.items():
        for weight in net.parameters():
            hook = partial(lambda name, _: reached.add(name), name)
            weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    before = {name: flat(net) for name, net in objective.nets.items()}
    state = State.fresh(objective, config)
    told = Engine(objective, state, config, World.local("cpu")).step(batch(20), noise(20))
    assert reached == trains
    assert {name for name, net in objective.nets.items() if not torch.equal(flat(net), before[name])} == trains
    assert all(weight.grad is None for net in objective.nets.values() for weight in net.parameters())
    assert told


def test_phases_come_in_their_order_and_only_when_they_are_due(tiny: Tiny) -> None:
    config = tiny("gan")
    objective = build_objective(config, SHAPE)
    objective.phases = [
        Phase(name="discriminator", trains=("discriminator",)),
        Phase(name="generator", trains=("generator",), every=3),
    ]
    state = State.fresh(objective, config)
    engine = Engine(objective, state, config, World.local("cpu"))
    seen = []
    for _ in range(7):
        before = flat(objective.nets["generator"])
        told = engine.step(batch(20), noise(20))
        assert ("loss/generator" in told) == (not torch.equal(flat(objective.nets["generator"]), before))
        seen.append([name for name in told if name.startswith("loss/")])
    both, alone = ["loss/discriminator", "loss/generator"], ["loss/discriminator"]
    assert seen == [both, alone, alone, both, alone, alone, both]


def test_the_generator_answers_the_discriminator_that_was_just_trained(tiny: Tiny) -> None:
    config = tiny("gan", "optim.lr=0.1")
    objective = build_objective(config, SHAPE)
    first, _ = objective.loss("generator", batch(20), noise(20))
    told = Engine(objective, State.fresh(objective, config), config, World.local("cpu")).step(batch(20), noise(20))
    assert told["loss/generator"].mean().item() != first.item()


# --- objectives of one's own -------------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "my_objective.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.usefixtures("registry")
def test_a_plugin_adds_its_objective(plugin: Callable[[str], Path]) -> None:
    load_plugin(plugin(PLUGIN))
    config = read_config("seed-autoencoder", ["objective.name=fish", "objective.fins=3"])
    assert config.objective.model_dump() == {"name": "fish", "code": "linear", "fins": 3}
    objective = build_objective(config, SHAPE)
    assert type(objective).__name__ == "Fish"
    loss, _ = objective.loss("reconstruction", batch(), noise())
    assert loss.ndim == 0
    with pytest.raises(ConfigError, match=r"unknown key objective.fin \(did you mean 'objective.fins'\?\)"):
        read_config("seed-autoencoder", ["objective.name=fish", "objective.fin=3"])


@pytest.mark.usefixtures("registry")
def test_a_plugin_may_be_loaded_twice(plugin: Callable[[str], Path]) -> None:
    load_plugin(plugin(PLUGIN))
    load_plugin(plugin(PLUGIN.replace("fins: int = 2", "fins: int = 4")))
    assert parse_objective({"name": "fish"}).model_dump()["fins"] == 4


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "part",
    [
        "from dataclasses import dataclass, field\n\n@dataclass\nclass Rate:\n    value: float = 1.0\n",
        "from pydantic import BaseModel\n\nclass Rate(BaseModel):\n    value: Literal[1, 2] = 1\n\nRate(value=2)\n",
        "import pickle\n\ndef helper() -> int:\n    return 3\n\nassert pickle.loads(pickle.dumps(helper))() == 3\n",
    ],
    ids=["dataclass", "pydantic", "pickle"],
)
def test_a_plugin_may_be_written_as_any_module_is(plugin: Callable[[str], Path], part: str) -> None:
    load_plugin(plugin("from __future__ import annotations\n" + PLUGIN + "\n\n" + part))
    assert parse_objective({"name": "fish", "fins": 5}).model_dump()["fins"] == 5


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("text", ["", "x = 3\n", "from shoal.objectives import Autoencoder, Gan, Objective\n"])
def test_a_plugin_without_an_objective_of_its_own_is_refused(plugin: Callable[[str], Path], text: str) -> None:
    with pytest.raises(ConfigError, match=r"my_objective.py defines no objective; subclass shoal.objectives.Objective"):
        load_plugin(plugin(text))


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "notes.txt"])
def test_a_plugin_that_is_no_python_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").write_text(PLUGIN)
    with pytest.raises(ConfigError, match=rf"{name} is not a Python file; give --plugin a .py file"):
        load_plugin(tmp_path / name)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def oops(:\n    pass\n", r"plug-in .*mine.py: SyntaxError: .*line 1\); mend it$"),
        ("\nprint(undefined)\n", r"mine.py: NameError: name 'undefined' is not defined \(line 2\); mend it$"),
        ("import no_such_package\n", r"mine.py: ModuleNotFoundError: .*'no_such_package' \(line 1\); mend it$"),
    ],
)
def test_a_plugin_that_fails_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_plugin(path)
    assert caught.value.__cause__ is not None
    assert "shoal_plugin" not in sys.modules


@pytest.mark.parametrize(
    "config",
    ["pass", "Config = 3", "Config = dict", "Config = type('Config', (ObjectiveConfig,), {})"],
    ids=["none", "no class", "another class", "no name"],
)
def test_a_plugin_whose_objective_has_no_named_config_is_refused(tmp_path: Path, config: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"from shoal.objectives import Objective, ObjectiveConfig\nclass Fish(Objective):\n    {config}\n")
    before = dict(OBJECTIVES)
    with pytest.raises(ConfigError, match=r"objective Fish of shoal_plugin has no Config with a name; give it a class"):
        load_plugin(path)
    assert before == OBJECTIVES


@pytest.mark.parametrize("taken", ["autoencoder", "gan"])
def test_a_plugin_cannot_take_a_name_that_is_there(plugin: Callable[[str], Path], taken: str) -> None:
    before = OBJECTIVES[taken]
    with pytest.raises(ConfigError, match=rf"objective name '{taken}' is taken by shoal.objectives.{taken}; give Fish"):
        load_plugin(plugin(PLUGIN.replace('"fish"', f'"{taken}"')))
    assert OBJECTIVES[taken] is before


@pytest.mark.usefixtures("registry")
def test_registering_twice_is_refused_unless_it_is_the_same() -> None:
    gan = OBJECTIVES["gan"]
    register(gan)
    assert OBJECTIVES["gan"] is gan
    double = type("Double", (gan,), {})
    with pytest.raises(
        ConfigError, match=r"objective name 'gan' is taken by shoal.objectives.gan; give Double another"
    ):
        register(double)
    assert OBJECTIVES["gan"] is gan


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None) -> Any:
    """Install a package with an objective into an empty folder of sys.path."""

    def put(text: str) -> None:
        site = tmp_path / "site"
        info = site / "fish-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "fish_objective.py").write_text(text)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fish\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[shoal.objectives]\nfish = fish_objective:Fish\n")
        monkeypatch.syspath_prepend(site)
        load_installed.cache_clear()

    yield put
    load_installed.cache_clear()
    sys.modules.pop("fish_objective", None)


def test_an_installed_package_adds_its_objective(install: Callable[[str], None]) -> None:
    install(PLUGIN)
    config = read_config("seed-autoencoder", ["objective.name=fish"])
    assert type(config.objective).__module__ == "fish_objective"
    assert type(build_objective(config, SHAPE)).__name__ == "Fish"


def test_an_installed_package_cannot_take_a_name_that_is_there(install: Callable[[str], None]) -> None:
    install(PLUGIN.replace('"fish"', '"gan"'))
    with pytest.raises(ConfigError, match=r"objective name 'gan' is taken by shoal.objectives.gan"):
        read_config("seed-gan")


def test_alone_reduce_is_the_identity() -> None:
    value = torch.randn(3)
    assert batch().reduce(value).equal(value)
    assert batch().gather(value).equal(value)
