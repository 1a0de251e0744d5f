from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shoal.config import build_config, read_config
from shoal.errors import ConfigError
from shoal_ray.population.search_config import FitnessConfig, SearchConfig, find_metric, read_search

SEARCHES = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))

SMALL: dict[str, Any] = {
    "run": "seed-autoencoder",
    "set": {"nets.hidden": [16]},
    "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "nets.latent": {"ladder": [4, 8, 16]}},
    "fitness": {"metric": "quality/mse", "mode": "min", "price": {"nets.latent": 2e-5}},
}

Search = Callable[..., SearchConfig]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Return ``search(*overrides, key=value)``: the small search, read from a file."""

    def read(*overrides: str, **keys: Any) -> SearchConfig:
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **keys}))
        return read_search(path, overrides)

    return read


def refused(search: Search, *overrides: str, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        search(*overrides, **keys)
    return str(caught.value)


def test_defaults_are_those_of_the_manual(search: Search) -> None:
    found = search().model_dump(mode="json")
    for key in ("run", "set", "space"):
        del found[key]
    assert found == {
        "population": 8,
        "generation_samples": 30_000,
        "generations": 10,
        "algorithm": "pbt",
        "synchronous": True,
        "quantile": 0.25,
        "reduction_factor": 3,
        "grace_generations": 1,
        "fitness": {
            "metric": "quality/mse",
            "mode": "min",
            "price": {"nets.latent": 2e-5},
            "images": 2000,
            "held_out": 0.1,
        },
        "exploit": {"min_gap": 2.0, "max_share": 0.5},
        "stop": {"hours": None, "plateau_generations": None},
        "seed": 0,
    }


def test_a_member_is_the_run_with_set_and_values_on_top(search: Search) -> None:
    found = search("generations=7", "generation_samples=2e3").config_of({"optim.lr": 5e-3, "nets.latent": 16})
    expected = ["nets.hidden=[16]", "optim.lr=0.005", "nets.latent=16", "duration_samples=14000"]
    assert found == read_config("seed-autoencoder", expected)


def test_another_name_in_set_starts_its_section_afresh_whatever_the_order(search: Search) -> None:
    keys = {"nets.width": 8, "nets.name": "conv", "nets.norm": "none"}
    for order in (keys, dict(reversed(keys.items()))):
        nets = search(set=order).config_of({"nets.latent": 8}).nets
        assert nets == build_config({"objective": {"name": "gan"}, "nets": {**_plain(keys), "latent": 8}}).nets


def _plain(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("nets."): value for key, value in keys.items()}


def test_set_may_be_written_in_sections(search: Search) -> None:
    assert search(set={"nets": {"hidden": [16]}}) == search()


def test_the_run_may_be_a_file_beside_the_search(search: Search, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(read_config("seed-autoencoder", ["optim.eps=1e-6"]).to_yaml())
    assert search(run="mine.yaml").config_of({}).optim.eps == 1e-6


def test_on_the_command_line_it_is_a_file_of_the_current_directory(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.yaml").write_text(read_config("seed-autoencoder", ["optim.eps=1e-6"]).to_yaml())
    monkeypatch.chdir(tmp_path / "here")
    assert search("run=mine.yaml").config_of({}).optim.eps == 1e-6


def test_a_name_is_a_file_of_tune_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "mine.yaml").write_text(yaml.safe_dump(SMALL))
    monkeypatch.chdir(tmp_path)
    assert read_search("mine") == read_search(tmp_path / "tune_configs" / "mine.yaml")
    with pytest.raises(ConfigError, match=r"no search 'mien' in tune_configs/ \(did you mean 'mine'\?\): it has mine"):
        read_search("mien")
    monkeypatch.chdir(tmp_path / "tune_configs")
    with pytest.raises(ConfigError, match="there is none in the current directory"):
        read_search("mine")


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("population=4", ["population"], 4),
        ("generation_samples=3e4", ["generation_samples"], 30_000),
        ("stop.hours=8", ["stop", "hours"], 8),
        ("exploit={min_gap: 0}", ["exploit"], {"min_gap": 0, "max_share": 0.5}),
        ("fitness.images=500", ["fitness", "images"], 500),
        ("fitness.price.nets.latent=1e-4", ["fitness", "price"], {"nets.latent": 1e-4}),
        ("fitness.price.optim.lr=1", ["fitness", "price"], {"nets.latent": 2e-5, "optim.lr": 1}),
        ("fitness.price={optim.lr: 1}", ["fitness", "price"], {"nets.latent": 2e-5, "optim.lr": 1}),
        ("run.optim.eps=1e-6", ["set"], {"nets.hidden": [16], "optim.eps": "1e-6"}),
        ("set.nets.hidden=[8, 4]", ["set"], {"nets.hidden": [8, 4]}),
        ("run.nets={hidden: [8]}", ["set"], {"nets.hidden": [8]}),
        ("space.optim.lr.log_uniform=[1e-4,1e-3]", ["space", "optim.lr", "log_uniform"], [1e-4, 1e-3]),
        ("space.optim.lr.perturb=2", ["space", "optim.lr"], {"log_uniform": [1e-4, 1e-2], "perturb": 2, "resample": 0}),
        ("space.optim.lr.uniform=[1, 2]", ["space", "optim.lr"], {"uniform": [1, 2], "perturb": 0.1, "resample": 0}),
        ("space.optim.lr={choice: [1, 2]}", ["space", "optim.lr"], {"choice": [1, 2], "resample": 0.25}),
        ("space.optim.lr={resample: 0.5}", ["space", "optim.lr", "resample"], 0.5),
        ("space.optim.eps.choice=[1e-8, 1e-6]", ["space", "optim.eps", "choice"], [1e-8, 1e-6]),
    ],
)
def test_overrides_reach_keys_that_contain_dots(search: Search, override: str, place: list[str], value: Any) -> None:
    found: Any = search(override).model_dump(mode="json")
    for part in place:
        found = found[part]
    assert found == value


def test_a_key_can_be_taken_out_of_the_space(search: Search) -> None:
    assert list(search("space.nets.latent=null").space) == ["optim.lr"]
    assert "space is empty" in refused(search, "space.nets.latent=null", "space.optim.lr=null")
    assert "no such key (did you mean 'optim.lr'?)" in refused(search, "space.optm.lr=null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("populaton=4", "unknown key populaton (did you mean 'population'?)"),
        ("fitness.metrics=x", "unknown key fitness.metrics (did you mean 'fitness.metric'?)"),
        ("exploit.gap=1", "unknown key exploit.gap"),
        ("population=1", "population=1: should be greater than or equal to 2"),
        ("generations=0", "generations=0: should be greater than 0"),
        ("generation_samples=0.5", "generation_samples=0.5: should be a valid integer"),
        ("algorithm=pb2", "algorithm='pb2': should be 'pbt', 'asha' or 'random'"),
        ("quantile=0", "quantile=0: should be greater than 0"),
        ("quantile=0.6", "quantile=0.6: should be less than or equal to 0.5"),
        ("reduction_factor=1", "reduction_factor=1: should be greater than 1"),
        ("synchronous=sometimes", "synchronous='sometimes': should be a valid boolean"),
        ("fitness.mode=low", "fitness.mode='low': should be 'min' or 'max'"),
        ("fitness.price.nets.latent=-1", "fitness.price.nets.latent=-1: should be greater than or equal to 0"),
        ("fitness.price.nets.latent=.inf", "fitness.price.nets.latent=inf: should be a finite number"),
        ("fitness.held_out=1", "fitness.held_out=1: should be less than or equal to 0.99"),
        ("exploit.max_share=0", "exploit.max_share=0: should be greater than 0"),
        ("stop.hours=0", "stop.hours=0: should be greater than 0"),
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("population=true", "population: true is a truth value"),
        ("run=vea", "unknown preset 'vea' (did you mean 'vae'?)"),
        ("run=none.yaml", "none.yaml does not exist"),
        ("run=3", "run=3: must be a preset's name or a YAML file"),
        ("set.nets.hiden=[3]", "unknown key nets.hiden (did you mean 'nets.hidden'?)"),
        ("set.nets.hidden.width=3", "nets.hidden.width"),
        ("set=3", "set=3: must be a mapping"),
        ("space=3", "space=3: must be a mapping"),
        ("space.optim.lr.lgo_uniform=[1, 2]", "unknown key space.optim.lr.lgo_uniform (did you mean 'log_uniform'?)"),
        ("space.optim.lr=3", "space.optim.lr=3: must be one of log_uniform"),
        ("space.optim.eps=3", "space.optim.eps=3: must be one of log_uniform"),
        ("space.optim.lr.log_uniform=[2, 1]", "space.optim.lr: log_uniform=[2, 1] holds no range"),
        ("population", "not of the form key=value"),
    ],
)
def test_a_bad_override_names_key_value_and_rule(search: Search, override: str, message: str) -> None:
    assert message in refused(search, override)


@pytest.mark.parametrize("key", ["run", "fitness", "space"])
def test_what_a_search_cannot_do_without_is_missed(tmp_path: Path, key: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in SMALL.items() if name != key}))
    with pytest.raises(ConfigError, match=key):
        read_search(path)


def test_a_file_that_is_none_or_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        read_search(tmp_path / "none.yaml")
    for text, message in (("- 1", "holds list, not a mapping"), ("a: [", "is not YAML")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_search(tmp_path / "bad.yaml")


def test_a_search_is_frozen(search: Search) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        search().population = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_searches_come_back_equal_from_their_own_yaml(path: Path, tmp_path: Path) -> None:
    search = read_search(path)
    (tmp_path / "copy.yaml").write_text(search.to_yaml())
    copy = read_search(tmp_path / "copy.yaml")
    assert copy == search
    assert copy.to_yaml() == search.to_yaml()
    values = search.space.sample(2, 0)[1]
    assert copy.config_of(values) == search.config_of(values)


@given(
    st.integers(2, 1000),
    st.integers(1, 10**9),
    st.floats(0.01, 0.99),
    st.floats(1e-9, 1e9),
    st.lists(st.integers(1, 10**6), min_size=2, unique=True).map(sorted),
)
def test_any_search_comes_back_equal_from_its_own_yaml(
    tmp_path_factory: pytest.TempPathFactory,
    population: int,
    samples: int,
    share: float,
    price: float,
    sizes: list[int],
) -> None:
    path = tmp_path_factory.mktemp("searches") / "search.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                **SMALL,
                "population": population,
                "generation_samples": samples,
                "fitness": {"metric": "kd", "mode": "min", "held_out": share, "price": {"nets.latent": price}},
                "space": {"nets.latent": {"ladder": sizes}, "optim.lr": {"uniform": [0, price]}},
            }
        )
    )
    search = read_search(path)
    path.write_text(search.to_yaml())
    assert read_search(path) == search


def test_a_search_of_a_file_needs_the_file_no_more(search: Search, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(read_config("seed-autoencoder", ["optim.eps=1e-6"]).to_yaml())
    kept = tmp_path / "kept.yaml"
    kept.write_text(search(run="mine.yaml").to_yaml())
    (tmp_path / "mine.yaml").unlink()
    assert read_search(kept).config_of({}).optim.eps == 1e-6
    assert read_search(kept, ["run=seed-autoencoder"]).config_of({}).optim.eps == 1e-8


@pytest.mark.parametrize(
    ("mode", "price", "natural", "score"),
    [("min", {}, 5.0, -5.0), ("max", {}, 5.0, 5.0), ("min", {"a.b": 0.5}, 7.0, -7.0), ("max", {"a.b": 0.5}, 3.0, 3.0)],
)
def test_fitness_by_hand(mode: str, price: dict[str, float], natural: float, score: float) -> None:
    fitness = FitnessConfig.model_validate({"metric": "m", "mode": mode, "price": price})
    assert fitness.natural({"m": 5.0, "n": 1.0}, {"a.b": 4, "c": 2}) == natural
    assert fitness.score(natural) == score
    assert fitness.score(None) is None


def test_two_prices_add_up() -> None:
    fitness = FitnessConfig.model_validate({"metric": "kd", "mode": "min", "price": {"a": 0.5, "b": 0.25}})
    assert fitness.natural({"kd/small:12": 1.0}, {"a": 2, "b": 4}) == 3.0


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(["min", "max"]))
def test_the_better_metric_scores_higher(one: float, two: float, mode: str) -> None:
    fitness = FitnessConfig.model_validate({"metric": "m", "mode": mode})
    better = min(one, two) if mode == "min" else max(one, two)
    assert max((one, two), key=lambda metric: fitness.score(fitness.natural({"m": metric}, {})) or 0.0) == better


def test_prices_are_of_what_is_searched_and_of_what_is_not(search: Search) -> None:
    priced = search("fitness.price.nets.latent=1", "fitness.price.optim.lr=2").priced({"nets.latent": 4})
    assert priced == {"nets.latent": 4, "optim.lr": 1e-3}
    for key, message in (
        ("nets.latnt", r"fitness\.price\.nets\.latnt: no such key in the run \(did you mean 'nets\.latent'\?\)"),
        ("optim.name", r"fitness\.price\.optim\.name: adam is not a number"),
        ("nets.hidden", r"fitness\.price\.nets\.hidden: \[16\] is not a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            search(f"fitness.price.{key}=1").priced({})


def test_a_metric_may_leave_out_its_extractor() -> None:
    there = ["kd/small:12", "fd/small:12", "fd/large:34", "quality/mse", "quality/mse_low", "loss/kd"]
    assert find_metric("kd", there) == "kd/small:12"
    assert find_metric("kd/small:12", there) == "kd/small:12"
    assert find_metric("quality/mse", there) == "quality/mse"
    with pytest.raises(ConfigError, match=r"fitness\.metric=fd means fd/large:34 or fd/small:12; write which"):
        find_metric("fd", there)
    with pytest.raises(ConfigError) as caught:
        find_metric("quality/msee", there)
    assert str(caught.value) == (
        "fitness.metric=quality/msee is not measured (did you mean 'quality/mse'?); there are fd/large:34, fd/small:12,"
        " kd/small:12, loss/kd, quality/mse, quality/mse_low"
    )
    with pytest.raises(ConfigError, match="there are none"):
        find_metric("kd", [])
