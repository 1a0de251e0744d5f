from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shoal.config import (
    RunConfig,
    build_config,
    changed_keys,
    may_change,
    merge,
    parse_override,
    presets,
    read_config,
    with_overrides,
)
from shoal.errors import ConfigError, RunError
from shoal.objectives import build
from shoal.objectives.gan import GanConfig
from shoal.run import Run
from shoal.strict import dotted_keys

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("batchs=4", "batch"),
        ("durations_samples=4", "duration_samples"),
        ("optim.lrr=1", "optim.lr"),
        ("nets.latnt=3", "nets.latent"),
        ("nets.hiden=[3]", "nets.hidden"),
        ("objective.los=minimax", "objective.loss"),
        ("data.rage=unit", "data.range"),
        ("ema.half_life=3", "ema.half_life_samples"),
        ("report.every_sample=3", "report.every_samples"),
        ("optim.phases.generator.lrr=1", "optim.phases.generator.lr"),
        ("optim.phases.generater.lr=1", "generator"),
    ],
)
def test_unknown_key_names_its_nearest_neighbour(override: str, nearest: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        read_config("seed-gan", [override])
    assert "unknown key " + key.removesuffix(".lr") in str(caught.value)
    assert f"did you mean '{nearest}'?" in str(caught.value)


def test_unknown_key_without_a_neighbour_lists_its_siblings() -> None:
    with pytest.raises(ConfigError, match=r"unknown key ema.qqqqqqqq; known here: ema.half_life_samples$"):
        read_config("seed-gan", ["ema.qqqqqqqq=1"])


def test_unknown_preset_names_its_nearest_neighbour_and_all_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config("seed-autoencodr")
    assert "unknown preset 'seed-autoencodr' (did you mean 'seed-autoencoder'?)" in str(caught.value)
    for name in presets():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective.name=gann",
            r"unknown objective.name=gann \(did you mean 'gan'\?\); known: autoencoder, denoising_autoencoder, gan",
        ),
        ("nets.name=cnv", r"unknown nets.name=cnv \(did you mean 'conv'\?\); known: conv, mlp"),
        ("objective=gan", r"objective.name is missing; set objective.name to one of autoencoder, denoising_"),
        ("nets=[]", r"nets.name is missing; set nets.name to one of conv, mlp"),
        ("batch=0", r"batch=0: should be greater than 0"),
        ("batch=-1", r"batch=-1: should be greater than 0"),
        ("batch=2.5", r"batch=2.5: should be a valid integer"),
        ("batch=many", r"batch='many': should be a valid integer"),
        ("batch=.nan", r"batch=nan: should be "),
        ("batch=.inf", r"batch=inf: should be "),
        ("optim.lr=0", r"optim.lr=0: should be greater than 0"),
        ("optim.lr=.nan", r"optim.lr=nan: should be "),
        ("optim.lr=.inf", r"optim.lr=inf: should be "),
        ("optim.lr=fast", r"optim.lr='fast': should be a valid number"),
        ("optim.lr=", r"optim.lr=None: should be a valid number"),
        ("optim.betas=[0.5, 1.0]", r"optim.betas.1=1.0: should be less than 1"),
        ("optim.betas=[0.5]", r"optim.betas.1 is missing"),
        ("optim.schedule=cosin", r"optim.schedule='cosin': should be 'constant', 'cosine' or 'linear'"),
        ("optim.name=lion", r"optim.name='lion': should be 'adam', 'adamw' or 'sgd'"),
        ("optim.final_factor=1.5", r"optim.final_factor=1.5: should be less than or equal to 1"),
        ("optim=null", r"optim=None: must be a section of keys, e\.g\. optim\.lr=…"),
        ("optim=5", r"^optim=5: must be a section of keys, e\.g\. optim\.lr=…$"),
        ("data=unit", r"data='unit': must be a section of keys, e\.g\. data\.split=…"),
        ("optim.phases=3", r"optim\.phases=3: must be a section of keys, e\.g\. optim\.phases\.NAME\.lr=…"),
        ("optim.phases.generator=3", r"must be a section of keys, e\.g\. optim\.phases\.generator\.lr=…"),
        ("nets.hidden=64", r"^nets\.hidden=64: must be a list, e\.g\. nets\.hidden=\[64\]$"),
        ("nets.hidden=", r"nets\.hidden=None: must be a list, e\.g\. nets\.hidden=\[…\]"),
        ("nets.latent=0", r"nets.latent=0: should be greater than 0"),
        ("nets.hidden=[16, 0]", r"nets.hidden.1=0: should be greater than 0"),
        ("nets.activation=tanh", r"nets.activation='tanh': should be 'relu', 'leaky_relu', 'gelu' or 'silu'"),
        ("data.range=[0, 1]", r"data.range=\[0, 1\]: should be 'unit' or 'symmetric'"),
        ("checkpoint.keep=0", r"checkpoint.keep=0: should be greater than 0"),
        ("seed=-1", r"seed=-1: should be greater than or equal to 0"),
    ],
)
def test_bad_value_names_key_value_and_rule(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config("seed-gan", [override])


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config("seed-gan", ["batch=0", "optim.lr=-1", "report.evry_samples=3"])
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "batch",
        "optim.lr",
        "unknown key report.evry_samples (did you mean 'report.every_samples'?)",
    ]


def test_a_section_without_its_name_is_laid_over_the_one_below() -> None:
    assert changed_keys(read_config("seed-gan"), read_config("seed-gan", ["nets={latent: 3}"])) == ["nets.latent"]


@pytest.mark.parametrize("override", ["batch=true", "optim.lr=yes", "nets.latent=true", "checkpoint.keep=on"])
def test_a_truth_value_is_no_number(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        read_config("seed-gan", [override])


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    assert read_config("seed-gan", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
    with pytest.raises(ConfigError, match="seed"):
        read_config("seed-gan", [f"seed={2**64}"])


@pytest.mark.parametrize("written", ["3e6", "3.0e6", "3.0e+6", "3_000_000", "3000000", "3000000.0"])
def test_counts_may_be_written_as_people_write_them(written: str) -> None:
    for key in ("duration_samples", "report.every_samples", "checkpoint.every_samples", "optim.warmup_samples"):
        values: Any = read_config("dcgan", [f"{key}={written}"]).model_dump()
        for part in key.split("."):
            values = values[part]
        assert values == 3_000_000
        assert type(values) is int


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", ".001", "1E-3"])
def test_rates_may_be_written_as_people_write_them(written: str) -> None:
    assert read_config("dcgan", [f"optim.lr={written}"]).optim.lr == 1e-3


def test_overrides_reach_into_sections_and_the_last_one_wins() -> None:
    config = read_config("seed-gan", ["optim.lr=1e-3", "optim.betas=[0.1, 0.2]", "nets.hidden=[8]", "optim.lr=1e-2"])
    assert config.optim.lr == 1e-2
    assert config.optim.betas == (0.1, 0.2)
    assert config.nets.model_dump()["hidden"] == (8,)
    assert changed_keys(read_config("seed-gan"), config) == ["nets.hidden", "optim.betas", "optim.lr"]


def test_a_phase_can_have_its_own_rate() -> None:
    config = read_config("seed-gan", ["optim.phases.discriminator.lr=1e-5"])
    assert config.optim.phases["discriminator"].lr == 1e-5


@pytest.mark.parametrize("override", ["batch", "=3", "optim..lr=1", ".lr=1", "optim.=1", ""])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"override '{override}' is not of the form key=value, e\.g\. "):
        read_config("seed-gan", [override])


def test_an_override_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override 'nets.hidden=\[64' has a value that is not YAML; quote it"):
        read_config("seed-gan", ["nets.hidden=[64"])


@given(st.lists(st.text("abc_", min_size=1), min_size=1, max_size=4), st.text("=xyz ", max_size=4))
def test_an_override_nests_its_value_under_its_key(parts: list[str], value: str) -> None:
    found: Any = parse_override(f"{'.'.join(parts)}='{value}'")
    for part in parts:
        assert list(found) == [part]
        found = found[part]
    assert found == value


keys = st.sampled_from(["a", "b", "c"])
trees = st.dictionaries(keys, st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner), max_leaves=6))


@given(trees, trees)
def test_merging_keeps_what_is_not_named_and_takes_what_is(base: dict[str, Any], top: dict[str, Any]) -> None:
    before = repr((base, top))
    merged = merge(base, top)
    assert repr((base, top)) == before
    assert merged.keys() == base.keys() | top.keys()
    for key, value in merged.items():
        if key not in top:
            assert value == base[key]
        elif isinstance(top[key], dict) and isinstance(base.get(key), dict):
            assert value == merge(base[key], top[key])
        else:
            assert value == top[key]


def test_another_objective_starts_its_section_afresh() -> None:
    config = read_config("seed-autoencoder", ["objective.name=gan", "nets.name=conv"])
    assert config.objective == GanConfig()
    assert "hidden" not in config.nets.model_fields_set
    assert config.optim == read_config("seed-autoencoder").optim


def test_naming_the_same_objective_changes_nothing() -> None:
    again = read_config("seed-autoencoder", ["objective.name=autoencoder", "nets.name=mlp"])
    assert again == read_config("seed-autoencoder")


def test_no_override_is_lost_when_the_name_comes_after_it() -> None:
    there = read_config("seed-autoencoder", ["objective.name=gan", "objective.loss=minimax"])
    back = read_config("seed-autoencoder", ["objective.loss=minimax", "objective.name=gan"])
    assert there.objective == GanConfig(loss="minimax")
    assert back == there


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_come_back_equal_from_their_own_yaml(name: str, tmp_path: Path) -> None:
    config = read_config(name)
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    again = read_config(path)
    assert again == config
    assert type(again.objective) is type(config.objective)
    assert type(again.nets) is type(config.nets)
    assert again.to_yaml() == config.to_yaml()
    assert changed_keys(again, config) == []


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_make_networks_for_fashion_mnist(name: str) -> None:
    config = read_config(name)
    objective = build(config.objective, config.nets, (1, 28, 28), config.data.range, num_classes=10)
    trained = {net for phase in objective.phases for net in phase.trains}
    assert {name for name, net in objective.nets.items() if list(net.parameters())} == trained
    assert set(objective.inference) <= set(objective.nets)
    assert objective.latent_axes()


def test_there_are_the_presets_of_the_manual() -> None:
    autoencoders = {"autoencoder", "seed-autoencoder", "denoising-autoencoder", "vae", "beta-vae", "vq-vae", "wae"}
    gans = {"seed-gan", "dcgan", "wgan-gp", "sngan", "r3gan", "cgan", "dcgan-64"}
    assert set(presets()) == autoencoders | gans


def test_seed_presets_have_the_widths_of_the_article() -> None:
    from torch import nn

    def widths(name: str) -> dict[str, list[int]]:
        config = read_config(name)
        objective = build(config.objective, config.nets, (1, 28, 28), config.data.range)
        linear = {
            key: [module for module in net.modules() if isinstance(module, nn.Linear)]
            for key, net in objective.nets.items()
        }
        return {key: [layers[0].in_features, *(x.out_features for x in layers)] for key, layers in linear.items()}

    assert widths("seed-autoencoder") == {"encoder": [784, 64, 32], "decoder": [32, 64, 784]}
    assert widths("seed-gan") == {"generator": [100, 512, 784], "discriminator": [784, 512, 1]}
    config = read_config("seed-autoencoder")
    assert (config.batch, config.duration_samples, config.optim.name, config.optim.lr) == (
        256,
        50 * 60_000,
        "adam",
        1e-3,
    )
    assert config.objective.model_dump()["code"] == "sigmoid"
    assert read_config("autoencoder").nets.model_dump()["latent"] == 32
    assert read_config("dcgan").ema.half_life_samples > 0


def test_the_effective_configuration_holds_every_default() -> None:
    text = build_config({"objective": {"name": "gan"}, "nets": {"name": "mlp"}}).to_yaml()

    def flat(values: Any, at: str) -> set[str]:
        if isinstance(values, dict) and values:
            return set().union(*(flat(value, f"{at}.{key}" if at else key) for key, value in values.items()))
        return {at}

    written = flat(yaml.safe_load(text), "")
    assert set(dotted_keys(RunConfig)) <= written
    assert {"objective.loss", "nets.hidden"} <= written
    assert yaml.safe_load(text)["batch"] == 256


def test_a_configuration_is_frozen(tiny: Tiny) -> None:
    config = tiny("gan")
    for section, key in ((config, "batch"), (config.optim, "lr"), (config.objective, "loss"), (config.nets, "latent")):
        before = getattr(section, key)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, before)
        assert getattr(section, key) == before


def test_overriding_leaves_the_original(tiny: Tiny) -> None:
    config = tiny("gan")
    text = config.to_yaml()
    changed = with_overrides(config, ["optim.phases.generator.lr=1e-4", "batch=8", "ema.half_life_samples=0"])
    assert changed.batch == 8
    assert config.to_yaml() == text


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], []),
        (["batch=20"], []),
        (["batch=21", "optim.lr=1e-4"], ["batch", "optim.lr"]),
        (["nets.hidden=[16, 8]"], ["nets.hidden"]),
        (["objective.loss=minimax"], ["objective.loss"]),
        (["optim.clip=1"], ["optim.clip"]),
    ],
)
def test_changed_keys_are_those_whose_values_differ(tiny: Tiny, overrides: list[str], changed: list[str]) -> None:
    config = tiny("gan")
    assert changed_keys(config, with_overrides(config, overrides)) == changed
    assert changed_keys(with_overrides(config, overrides), config) == changed


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("duration_samples", True),
        ("optim.lr", True),
        ("optim.phases.generator.lr", True),
        ("report.every_samples", True),
        ("report.images_every_samples", True),
        ("checkpoint.keep", True),
        ("batch", False),
        ("seed", False),
        ("optim.lrx", False),
        ("optim.betas", False),
        ("nets.latent", False),
        ("objective.name", False),
        ("data.range", False),
        ("ema.half_life_samples", False),
        ("duration_samples.x", False),
        ("reports", False),
    ],
)
def test_only_what_keeps_the_run_itself_may_change(key: str, allowed: bool) -> None:
    assert may_change(key) is allowed


def test_a_first_rate_of_a_phase_may_come_with_a_resume(tiny: Tiny) -> None:
    config = tiny("gan")
    assert config.optim.phases == {}
    changed = changed_keys(config, with_overrides(config, ["optim.phases.generator.lr=1e-4"]))
    assert "optim.phases.generator.lr" in changed
    assert [key for key in changed if not may_change(key)] == []


@pytest.mark.parametrize(("name", "phases"), [("seed-gan", "discriminator, generator"), ("autoencoder", "reconstruct")])
def test_an_unknown_phase_is_refused_with_those_there_are(name: str, phases: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key optim.phases.critic; objective '.*' has the phases {phases}"):
        read_config(name, ["optim.phases.critic.lr=1e-4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- batch: 3", r"x\.yaml holds list, not a mapping of keys to values"),
        ("batch", r"x\.yaml holds str, not a mapping"),
        ("", r"x\.yaml holds NoneType, not a mapping"),
        ("batch: [3", r"x\.yaml is not YAML: "),
        ("batch: 3", r"objective.name is missing; set objective.name to one of"),
        ("objective: {name: gan}", r"nets.name is missing; set nets.name to one of conv, mlp"),
        ("objective: {name: gan}\nnets: 3", r"nets.name is missing"),
        ("3: 4", r"unknown key 3"),
        ("true: 4", r"unknown key "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00batch")
    with pytest.raises(ConfigError, match=r"x\.yaml is not YAML"):
        read_config(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yml does not exist; give a YAML file or a preset's name"):
        read_config(tmp_path / "nowhere.yml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("batch: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_config(path)


# --- changes on the way ----------------------------------------------------------------------------------------------


def changed(tiny: Tiny, changes: Any, kind: str = "autoencoder") -> RunConfig:
    return build_config({**tiny(kind).model_dump(mode="json"), "changes": changes})


@pytest.mark.parametrize(
    "written",
    [
        {60: {"optim.lr": 1e-4, "nets.latent": 7}},
        {60: {"optim": {"lr": 1e-4}, "nets": {"latent": 7}}},
        {60: {"nets.latent": 7, "optim": {"lr": 1e-4}}},
        {"60": {"optim.lr": 1e-4, "nets": {"latent": 7}}},
        {"6e1": {"optim.lr": 1e-4, "nets.latent": 7}},
        {60.0: {"optim.lr": 1e-4, "nets.latent": 7}},
    ],
)
def test_changes_may_be_written_nested_or_dotted(tiny: Tiny, written: Any) -> None:
    config = changed(tiny, written)
    assert config.changes == {60: {"optim.lr": 1e-4, "nets.latent": 7}}
    assert config.at(59) == config
    assert changed_keys(config, config.at(60)) == ["nets.latent", "optim.lr"]
    assert (config.at(60).optim.lr, config.at(60).nets.latent) == (1e-4, 7)


def test_changes_come_at_their_sample_and_a_later_one_overrides_an_earlier(tiny: Tiny) -> None:
    # Not in the order of the clock, as a file may have them.
    config = changed(
        tiny,
        {
            100: {"optim": {"lr": 3e-3, "phases": {"reconstruction": {"clip": 2.0}}}},
            40: {"optim.lr": 1e-3, "optim.clip": 1.0, "objective.code": "sigmoid"},
            300: {"optim.clip": None},
        },
    )
    assert config.at(-20) is config
    assert config.at(0) is config
    expected = {
        0: (1e-2, None),
        39: (1e-2, None),
        40: (1e-3, 1.0),
        99: (1e-3, 1.0),
        100: (3e-3, 1.0),
        300: (3e-3, None),
    }
    assert {at: (config.at(at).optim.lr, config.at(at).optim.clip) for at in expected} == expected
    assert config.at(99).optim.phases == {}
    assert config.at(100).optim.phases["reconstruction"].clip == 2.0
    assert config.at(300).objective.model_dump()["code"] == "sigmoid"
    later = config.at(300)
    assert later.changes == config.changes
    assert later.at(300) == later
    assert build_config(later.model_dump(mode="json")) == later


@given(
    st.dictionaries(st.integers(1, 500), st.floats(1e-6, 1.0), max_size=5),
    st.integers(-50, 600),
)
def test_the_value_at_a_sample_is_that_of_the_last_change_before_it(changes: dict[int, float], at: int) -> None:
    values = {"objective": {"name": "autoencoder"}, "nets": {"name": "mlp"}, "optim": {"lr": 0.5}}
    config = build_config({**values, "changes": {sample: {"optim.lr": lr} for sample, lr in changes.items()}})
    expected = 0.5
    for sample in range(1, at + 1):
        expected = changes.get(sample, expected)
    assert config.at(at).optim.lr == expected


def test_changes_come_back_equal_from_their_yaml(tiny: Tiny, tmp_path: Path) -> None:
    changes = {60: {"optim": {"lr": 1e-4, "betas": [0.5, 0.9]}}, 120: {"nets.latent": 9, "ema.half_life_samples": 50}}
    config = changed(tiny, changes)
    path = tmp_path / "x.yaml"
    path.write_text(config.to_yaml())
    again = read_config(path)
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert changed_keys(again, config) == []
    assert again.at(120).optim.betas == (0.5, 0.9)


def test_changes_may_be_given_as_overrides(tiny: Tiny) -> None:
    config = tiny(
        "gan", "changes={60: {optim.lr: 1e-4}}", "changes.60.optim.betas=[0.1, 0.2]", "changes.80.nets.latent=3"
    )
    assert config.changes == {60: {"optim.lr": "1e-4", "optim.betas": [0.1, 0.2]}, 80: {"nets.latent": 3}}
    assert config.at(80).optim.lr == 1e-4
    assert config.at(80).optim.betas == (0.1, 0.2)
    assert with_overrides(config, ["changes.60.optim.lr=1e-5"]).at(60).optim.lr == 1e-5


@pytest.mark.parametrize(
    "key",
    [
        "batch",
        "duration_samples",
        "seed",
        "init_seed",
        "init_from",
        "data.split",
        "data.held_out",
        "data.range",
        "nets.width",
        "nets.name",
        "nets.hidden",
        "report.every_samples",
        "checkpoint.keep",
        "ema",
        "nets.latent.x",
        "changes",
    ],
)
def test_what_cannot_change_on_the_way_is_refused(tiny: Tiny, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(tiny, {60: {"optim.lr": 1e-3}, 80: {key: 3}})
    assert str(caught.value) == (
        f"changes at sample 80: {key} cannot change while a model trains; only nets.latent, optim.*, objective.* and"
        " ema.half_life_samples can"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({60: {"optim.lr": -1}}, r"^changes at sample 60: optim\.lr=-1: should be greater than 0$"),
        ({60: {"optim": {"lrr": 1}}}, r"^changes at sample 60: unknown key optim\.lrr \(did you mean 'optim\.lr'\?\)$"),
        ({60: {"nets.latent": 0}}, r"^changes at sample 60: nets\.latent=0: should be greater than 0$"),
        ({60: {"nets.latent": 2.5}}, r"^changes at sample 60: nets\.latent=2\.5: should be a valid integer"),
        ({60: {"objective.code": "tanh"}}, r"^changes at sample 60: objective\.code='tanh': should be "),
        ({60: {"optim.phases.generator.lr": 1}}, r"^changes at sample 60: unknown key optim\.phases\.generator"),
        ({0: {"optim.lr": 1}}, r"changes.*0.*: should be greater than 0"),
        ({-20: {"optim.lr": 1}}, r"changes.*-20.*: should be greater than 0"),
        ({"soon": {"optim.lr": 1}}, r"changes.*soon.*: should be a valid integer"),
        ({60: 3}, r"changes\.60=3: must be a section of keys"),
        ([60], r"changes=\[60\]: must be a section of keys"),
    ],
)
def test_a_bad_change_is_refused_when_it_is_read(tiny: Tiny, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(tiny, changes)


def test_a_change_that_only_an_earlier_one_makes_wrong_is_refused(tiny: Tiny) -> None:
    first = {"optim.phases": {"generator": {"lr": 1e-3}}}
    assert changed(tiny, {60: first}, "gan").at(60).optim.phases["generator"].lr == 1e-3
    with pytest.raises(ConfigError, match="changes at sample 80: "):
        changed(tiny, {60: first, 80: {"optim.phases.generator.lr": -1}}, "gan")


@pytest.mark.parametrize(
    "override", ["changes.60.optim.lr=1e-5", "changes.140.optim.lr=1e-5", "changes={180: {nets.latent: 9}}"]
)
def test_a_resume_may_not_change_the_changes(make_run: Callable[..., Run], override: str) -> None:
    run = make_run("autoencoder", "changes={60: {optim.lr: 1e-4}}")
    with pytest.raises(
        RunError, match=r"^changes\.\d+\.\S+ may not change when a run is resumed; only duration_samples"
    ):
        run.resumed([override])
    assert run.resumed(["optim.lr=1e-3", "duration_samples=400"]).config.changes == run.config.changes
