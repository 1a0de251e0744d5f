import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shoal.data import DataSet
from shoal.data.write import write_dataset
from shoal.errors import ConfigError
from shoal_ray.population.check import check_search, search_table
from shoal_ray.population.search_config import SearchConfig, read_search

SEARCHES = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))

AUTOENCODER: dict[str, Any] = {
    "run": "seed-autoencoder",
    "set": {"batch": 16},
    "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "nets.latent": {"ladder": [4, 8, 16]}},
    "population": 4,
    "generation_samples": 100,
    "generations": 3,
    "fitness": {"metric": "quality/mse", "mode": "min", "price": {"nets.latent": 2e-5}, "images": 9},
}
GAN = ["run=seed-gan", "fitness.metric=kd"]
VAE = ["run=vae", "fitness.metric=quality/elbo", "fitness.mode=max", "set.nets={width: 4, hidden: 8}"]

Check = Callable[..., list[str]]


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., SearchConfig]:
    """Return ``search(*overrides)`` of a small autoencoder."""

    def read(*overrides: str) -> SearchConfig:
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(AUTOENCODER))
        return read_search(path, overrides)

    return read


@pytest.fixture
def check(search: Callable[..., SearchConfig], small_data: Path) -> Check:
    """Return ``check(*overrides)``: what is said of the small search on 96 small images."""
    data = DataSet.open(small_data)
    return lambda *overrides, workers=2: check_search(search(*overrides), data, workers)


def refused(check: Check, *overrides: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(*overrides, **keys)
    return str(caught.value).splitlines()


@pytest.fixture(scope="module")
def like_fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """A third of Fashion-MNIST's images, in its shape, with its ten classes; the pixels are noise."""
    path = tmp_path_factory.mktemp("data") / "like"
    draw = np.random.default_rng(0)
    splits = {
        name: [(draw.integers(0, 256, (rows, 1, 28, 28), dtype=np.uint8), np.arange(rows) % 10)]
        for name, rows in (("train", 20_000), ("test", 100))
    }
    write_dataset(path, splits, shape=(1, 28, 28), class_names=[str(name) for name in range(10)], source="noise")
    return DataSet.open(path)


def test_the_example_of_the_page_is_a_search(tmp_path: Path, like_fashion_mnist: DataSet) -> None:
    page = Path(__file__).parents[2] / "docs" / "population.md"
    path = tmp_path / "search.yaml"
    path.write_text(page.read_text().partition("```yaml\n")[2].partition("```")[0])
    found = read_search(path)
    assert len(found.space) == 5
    assert check_search(found, like_fashion_mnist, workers=2) == []


def test_there_are_the_searches_of_the_manual() -> None:
    assert [path.stem for path in SEARCHES] == ["autoencoder-asha", "autoencoder-pbt", "gan-pbt", "smoke", "vae-pbt"]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_searches_are_checked_without_a_caution(path: Path, like_fashion_mnist: DataSet) -> None:
    assert check_search(read_search(path), like_fashion_mnist, workers=2) == []


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_searches_open_with_their_command(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    assert first == f"# shoal tune {path.stem} --data data/fashion-mnist"
    assert second.startswith("# ")


def test_the_small_search_is_checked_without_a_caution(check: Check) -> None:
    assert check() == check("algorithm=asha") == check("algorithm=random") == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["space.optim.lrr.uniform=[1, 2]"], "space.optim.lrr: unknown key optim.lrr (did you mean 'optim.lr'?)"),
        (["space.nets.latnt.ladder=[4, 8]"], "space.nets.latnt: unknown key nets.latnt (did you mean 'nets.latent'?)"),
        (["space.optm.lr.uniform=[1, 2]"], "space.optm.lr: unknown key optm"),
        (["space.optim.lr.uniform=[-1, 1]"], "space.optim.lr: at -1: optim.lr=-1.0: should be greater than 0"),
        (["space.optim.schedule.choice=[cosine, cosin]"], "space.optim.schedule: at cosin: optim.schedule='cosin'"),
        (["space.optim.choice=[1, 2]"], "space.optim: at 1: optim=1: must be a section"),
        (["space.nets.latent.ladder=[0, 4]"], "space.nets.latent: at 0: nets.latent=0: should be greater than 0"),
        (["space.nets.latent={uniform: [4, 8]}"], "space.nets.latent: at 5.52786: nets.latent=5.527864"),
        (["algorithm=random", "space.batch.int=[1, 8]"], "space.batch: at 1: batch 1 cannot feed 2 workers"),
        (["algorithm=random", "space.batch.int=[16, 90]"], "space.batch: at 90: batch 90 is more than the 86 images"),
        (
            ["algorithm=random", "space.nets.name.choice=[mlp, cnv]"],
            "space.nets.name: at cnv: unknown nets.name=cnv (did you mean 'conv'?)",
        ),
        (["space.seed.int=[0, 3]"], "space.seed: cannot be searched: all members see the same images"),
        (["space.init_seed.int=[0, 3]"], "space.init_seed: cannot be searched: every member has first weights"),
        (["space.duration_samples.int=[100, 300]"], "space.duration_samples: cannot be searched: a search's length"),
        (["space.init_from.choice=[a, b]"], "space.init_from: cannot be searched"),
        (["space.data.range.choice=[unit, symmetric]"], "space.data.range: cannot be searched: members are compared"),
        (["space.report.every_samples.int=[1, 9]"], "space.report.every_samples: cannot be searched: nothing that is"),
        (["space.checkpoint.keep.int=[1, 9]"], "space.checkpoint.keep: cannot be searched: nothing that is learned"),
        (["space.batch.int=[16, 32]"], "space.batch: cannot change in a trained model; use algorithm=random or"),
        (
            ["space.objective.name.choice=[autoencoder, denoising_autoencoder]"],
            "space.objective.name: cannot change in a trained model",
        ),
        (
            ["space.nets.hidden.choice=[[16], [32]]"],
            "space.nets.hidden: only nets.latent can change in a trained model; use algorithm=random or algorithm=asha",
        ),
        (["space.nets.activation.choice=[relu, gelu]"], "space.nets.activation: only nets.latent can change"),
        (
            ["space.ema.half_life_samples.int=[0, 100]"],
            "From 0 to 100, the averaged weights appear",
        ),
        (
            ["space.optim.name.choice=[sgd, adam]"],
            "From sgd to adam, the optimizer of phase 'reconstruction' remembers two moments of a weight instead of a",
        ),
        (
            [*VAE, "space.objective.sigma.choice=[learned, 0.2]"],
            "From learned to 0.2, tensor decoder.log_sigma disappears",
        ),
        (
            ["run=vq-vae", "set.nets={width: 4}", "space.objective.num_codes.int=[16, 32]"],
            "From 16 to 32, tensor codebook.",
        ),
        (["fitness.price.nets.latnt=1"], "fitness.price.nets.latnt: no such key in the run (did you mean"),
        (["fitness.price.optim.schedule=1"], "fitness.price.optim.schedule: constant is not a number"),
        (
            ["fitness.price.optim.schedule=1", "space.optim.schedule.choice=[cosine, linear]"],
            "fitness.price.optim.schedule: cosine is not a number",
        ),
        (["fitness.metric=quality/elbo", "fitness.mode=max"], "objective 'autoencoder' has no likelihood"),
        (["fitness.metric=kd"], "fitness.metric=kd is never measured: objective 'autoencoder' generates no images"),
        ([*GAN, "fitness.metric=quality/mse"], "objective 'gan' reconstructs no images"),
        (["fitness.mode=max"], "fitness.mode=max: quality/mse is better the lower; use fitness.mode=min"),
        ([*GAN, "fitness.mode=max"], "fitness.mode=max: kd is better the lower; use fitness.mode=min"),
        (["generation_samples=15"], "generation_samples=15 is less than one batch of 16; use generation_samples >= 16"),
        (
            ["algorithm=random", "generation_samples=20", "space.batch.int=[8, 32]"],
            "generation_samples=20 is less than one batch of 32",
        ),
        (["algorithm=asha", "grace_generations=3"], "grace_generations=3 of generations=3 leaves no rung"),
        (["set.duration_samples=100"], "set.duration_samples: a search's length is generations x generation_samples"),
        (["set.optim.lr=1"], "optim.lr is both set and searched; leave out set.optim.lr"),
        (["set.changes={50: {optim.lr: 1}}"], "the run has changes at samples 50"),
        (["set.batch=90"], "batch 90 is more than the 86 images of split 'train[:90%]'"),
        (["set.data.split=tran"], "no split 'tran' (did you mean 'train'?)"),
        (["run=resnet.yaml"], "resnet.yaml does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_by_its_key(check: Check, overrides: list[str], message: str) -> None:
    assert message in "\n".join(refused(check, *overrides))


def test_an_unknown_key_is_said_once(check: Check) -> None:
    assert len(refused(check, "space.optim.lrr.choice=[1, 2, 3]")) == 1


def test_networks_that_cannot_make_such_images_are_refused(search: Callable[..., SearchConfig], tmp_path: Path) -> None:
    images = np.zeros((96, 1, 20, 20), np.uint8)
    splits = {"train": [(images, np.zeros(96, np.int64))]}
    write_dataset(tmp_path / "data", splits, shape=(1, 20, 20), class_names=["black"], source="black")
    data = DataSet.open(tmp_path / "data")
    random = search("algorithm=random", "space.nets.name.choice=[mlp, conv]")
    with pytest.raises(ConfigError, match=r"space\.nets\.name: at conv: nets\.name=conv cannot make images of 1x20x20"):
        check_search(random, data, 1)


def test_all_problems_are_named_at_once(check: Check) -> None:
    lines = refused(
        check,
        "generation_samples=4",
        "fitness.mode=max",
        "space.seed.int=[0, 3]",
        "space.optim.lrr.uniform=[1, 2]",
        "space.nets.latent.ladder=[0, 4]",
        "fitness.price.nets.latnt=1",
    )
    assert [line.split("=")[0].split(": ")[0] for line in lines] == [
        "generation_samples",
        "fitness.mode",
        "fitness.price.nets.latnt",
        "space.nets.latent",
        "space.seed",
        "space.optim.lrr",
    ]


def test_values_that_are_fine_alone_and_not_together_are_refused_once(check: Check) -> None:
    """A fixed sigma has no meaning with a Bernoulli likelihood; neither is wrong beside the preset's other value."""
    alone = ["algorithm=random", *VAE, "space.objective.sigma.choice=[learned, 0.2]"]
    assert check(*alone) == []
    lines = refused(check, *alone, "space.objective.likelihood.choice=[gaussian, bernoulli]")
    assert len(lines) == 1
    assert lines[0].startswith("values of the space that do not go together, ")
    assert "objective.likelihood=bernoulli" in lines[0]
    assert lines[0].endswith("sigma=0.2 has no meaning with likelihood=bernoulli; leave it out")


@pytest.mark.parametrize(
    "overrides",
    [
        GAN,
        [*GAN, "space.objective.r1.log_uniform=[0.1, 10]", "space.objective.critic_steps.int=[1, 4]"],
        [*GAN, "run=cgan", "set.nets={width: 4}"],
        [*VAE, "space.objective.beta.uniform=[0.5, 4]"],
        ["run=vq-vae", "set.nets={width: 4}"],
        ["run=wae", "set.nets={width: 4}"],
        ["space.ema.half_life_samples.int=[100, 1000]"],
        ["space.optim.name.choice=[adam, adamw]", "space.optim.schedule.choice=[constant, cosine]"],
        ["space.optim.betas.choice=[[0.0, 0.9], [0.9, 0.999]]"],
        ["algorithm=random", "run.batch=16", "space.nets.hidden.choice=[[16], [32]]"],
        ["algorithm=asha", "space.ema.half_life_samples.int=[0, 100]", "space.optim.name.choice=[sgd, adam]"],
        [*GAN, "space.optim.phases.discriminator.lr.log_uniform=[1e-4, 1e-2]"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_what_can_change_may_be_searched(check: Check, overrides: list[str]) -> None:
    said = check(*overrides)
    assert not [caution for caution in said if "latent" in caution or "fitness" in caution]


@pytest.mark.parametrize(
    ("overrides", "cautioned"),
    [
        (["fitness.price.nets.latent=0"], True),
        (["fitness.price.nets.latent=0", "fitness.metric=quality/psnr", "fitness.mode=max"], True),
        (["fitness.price.nets.latent=0", "algorithm=random"], True),
        (["fitness.price.nets.latent=0", "fitness.price.optim.lr=1"], True),
        (["fitness.price.nets.latent=0", "space.nets.latent=null"], False),
        ([*GAN, "fitness.price.nets.latent=0"], False),
        ([], False),
    ],
)
def test_a_free_latent_is_cautioned_against(check: Check, overrides: list[str], cautioned: bool) -> None:
    assert any("always picks the largest latent" in caution for caution in check(*overrides)) == cautioned


@pytest.mark.parametrize(("population", "share", "cautioned"), [(4, 0.5, False), (3, 0.5, True), (3, 0.67, False)])
def test_a_share_that_no_exploit_keeps_is_cautioned_against(
    check: Check, population: int, share: float, cautioned: bool
) -> None:
    said = check(f"population={population}", f"exploit.max_share={share}")
    assert any("exploit.max_share >= 0.67" in caution for caution in said) == cautioned


def test_fewer_held_out_images_than_asked_for_are_said(check: Check) -> None:
    assert check("fitness.images=11") == [
        "fitness.images=11 is more than the 10 images of split 'train[90%:]'; fitness is of those"
    ]


def test_what_the_objective_cautions_against_is_passed_on(check: Check) -> None:
    said = check(*GAN, "set.objective.loss=wasserstein")
    assert [caution for caution in said if "objective.loss=wasserstein grows without bound" in caution]


def test_the_table_has_a_row_for_each_key(search: Callable[..., SearchConfig]) -> None:
    assert search_table(search()) == [
        ("nets.latent", "sizes 4, 8, 16", "one step up, down, or none"),
        ("optim.lr", "log-uniform from 0.0001 to 0.01", "x or / 1.25"),
    ]
    assert {rule for _, _, rule in search_table(search("algorithm=asha"))} == {"drawn once"}


def test_a_search_is_declared_and_checked_without_ray() -> None:
    code = (
        "import sys\nsys.modules['ray'] = None\n"
        "import shoal_ray.population.check, shoal_ray.population.search_config, shoal_ray.population.space"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
