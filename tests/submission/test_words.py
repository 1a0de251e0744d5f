"""What can be said of a job without a cluster: its words, its environment, the address."""

import json
import os
import re
import shlex
import stat
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperGroup

from shoal.errors import ShoalError
from shoal_ray.cli import app
from shoal_ray.submission import environment
from shoal_ray.submission.address import DEFAULT, address, is_exposed, token
from shoal_ray.submission.entry import RUN, entrypoint, placement, runtime_env
from shoal_ray.submission.package import pack
from shoal_ray.submission.tree import Tree, gather
from shoal_ray.submission.words import Words, check, understand

COMMANDS = typer.main.get_group(app)
assert isinstance(COMMANDS, TyperGroup)

PLUGIN = """
from typing import Literal

from shoal.objectives import Autoencoder
from shoal.objectives.autoencoder import AutoencoderConfig

class MyConfig(AutoencoderConfig):
    name: Literal["mine"] = "mine"

class Mine(Autoencoder):
    Config = MyConfig
"""


def looked_at(words: Sequence[str], root: Path) -> Words:
    understood, given = understand(words, COMMANDS)
    check(understood, given, gather(root))
    return understood


def test_words_are_passed_on_as_they_are(tmp_path: Path) -> None:
    words = looked_at(["train", "vae", "optim.lr=1e-3", "--data", "s3://b/d", "--out", "/x//runs/a b"], tmp_path)
    assert words.argv == (
        "train",
        "--address",
        "auto",
        "vae",
        "optim.lr=1e-3",
        "--data",
        "s3://b/d",
        "--out",
        "/x//runs/a b",
    )
    assert (words.place, words.name, words.resume) == ("/x/runs/a b", "a b", False)
    assert words.checking()[:4] == ("train", "--check", "--address", "auto")
    again = looked_at(words.again, tmp_path)
    assert (again.place, again.resume) == (words.place, True)
    told = looked_at(["train", "--address", "auto", "vae", "--out", "/x"], tmp_path)
    assert told.argv.count("--address") == 1


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)))
def test_no_word_is_interpreted_by_a_shell(words: list[str]) -> None:
    line = entrypoint(RUN, "/x", words)
    assert shlex.split(line) == ["exec", "python", "-m", "shoal_ray.submission.inside", "run", "/x", *words]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no job given"),
        (["evaluate", "x"], "is no job"),
        (["train", "vae"], "no --out given"),
        (["train", "vae", "--out", "runs/x"], "--out runs/x is a path below this folder"),
        (["train", "vae", "--out", "/x", "--data", "data/x"], "--data data/x is a path below this folder"),
        (["train", "vae", "--out", "s4://b/x"], "no such kind of storage"),
        (["train", "vae", "--out", "/x", "--local"], "--local does not go with a job"),
        (["train", "vae", "--out", "/x", "--address", "a:1"], "--address a:1 after --"),
        (["train", "vea", "--out", "/x"], "did you mean 'vae'"),
        (["train", "vae", "optim.lrr=1", "--out", "/x"], "did you mean 'optim.lr'"),
        (["train", "a", "b", "--out", "/x"], "more than one CONFIG"),
        (["train", "none.yaml", "--out", "/x"], "there is no such file"),
        (["train", "kept/my.yaml", "--out", "/x"], "an ignore file leaves it out"),
        (["train", "vae", "--plugin", "none.py", "--out", "/x"], "there is no such file"),
        (["train", "vae", "--plugin", "empty.py", "--out", "/x"], "defines no objective"),
        (["tune", "none", "--out", "/x"], "no search 'none'"),
        (["train", "--resume", "--out", "/x", "nonsense=[", "b="], "nonsense"),
    ],
)
def test_mistakes_are_met_here(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "my.yaml").write_text("objective: {name: vae}")
    (tmp_path / "empty.py").touch()
    (tmp_path / ".gitignore").write_text("kept/")
    with pytest.raises(ShoalError) as refusal:
        looked_at(words, tmp_path)
    assert said in str(refusal.value)


def test_files_of_the_tree_are_read_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "my.yaml").write_text("objective: {name: mine}\nnets: {name: mlp}\n")
    words = ["train", "my.yaml", "--plugin", "mine.py", "--out", "/x"]
    assert looked_at(words, tmp_path).place == "/x"
    with pytest.raises(ShoalError, match="as seen from"):
        looked_at([*words[:1], str(tmp_path / "my.yaml"), *words[2:]], tmp_path)
    assert looked_at(["train", "/of/the/cluster.yaml", "--out", "/x"], tmp_path)


def test_secrets_are_told_from_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_TOKEN", "hush")
    settings, hidden = environment.read(["A=1=2", "MY_TOKEN", "EMPTY="], os.environ)
    assert (settings, hidden) == ({"A": "1=2", "EMPTY": ""}, {"MY_TOKEN": "hush"})
    tree = Tree(tmp_path, {})
    prepared = runtime_env("p.zip", tree, settings, secrets=True)
    assert "hush" not in json.dumps(prepared)
    assert prepared["env_vars"] == {"A": "1=2", "EMPTY": "", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    one, two = (pack(tree, environment.packed(hidden)) for _ in range(2))
    assert one[0] != two[0]  # a name that is shown must not be a hash of a secret alone
    with ZipFile(BytesIO(one[1])) as archive:
        (entry,) = archive.infolist()
        archive.extractall(tmp_path)
    assert stat.S_IMODE(entry.external_attr >> 16) == 0o600
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MY_TOKEN")
    environment.load()
    assert os.environ["MY_TOKEN"] == "hush"
    monkeypatch.chdir(tmp_path.parent)
    environment.load()  # a job without any


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["UNSET"], "it is not set here"),
        (["AWS_SECRET_ACCESS_KEY=hush"], "others see what stands on a command line"),
        (["A=1", "A=2"], "given twice"),
        (["PYTHONPATH=x"], "leave it out"),
        (["RAY_AUTH_TOKEN"], "leave it out"),
        (["=hush"], "--env takes NAME"),
        (["a b=hush"], "--env takes NAME"),
    ],
)
def test_no_refusal_repeats_a_value(options: list[str], said: str) -> None:
    with pytest.raises(ShoalError) as refusal:
        environment.read(options, {"RAY_AUTH_TOKEN": "hush"})
    assert said in str(refusal.value)
    assert "hush" not in str(refusal.value)


def test_the_driver_keeps_off_the_head() -> None:
    head, one, two = (
        {"node_id": name, "is_head_node": name == "head", "resources_total": {"CPU": 1.0}}
        for name in ("head", "one", "two")
    )
    assert placement([head, one, two], on_head=False) == {"ray.io/node-id": "!head"}
    assert placement([head, one], on_head=True) is None
    assert placement([head], on_head=False) is None
    coming_and_going = head | {"resources_total": {"shoal_nodes": 8.0}}
    assert placement([coming_and_going, one], on_head=False) is None


def test_the_address_is_the_one_given_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # where Ray's own processes meet
    assert address(None) == DEFAULT
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265/")
    assert address(None) == "http://10.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example.com")
    assert address(None) == "https://ray.example.com"
    assert address("http://127.0.0.1:1") == "http://127.0.0.1:1"
    for wrong in ("127.0.0.1:8265", "auto", "ray://head:10001", "http://", "http://[::1", "http://a:b"):
        with pytest.raises(ShoalError, match=f"--address {re.escape(wrong)} is not where jobs are taken; give the URL"):
            address(wrong)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "ray-head:8265")  # not this machine's cluster in its place
    with pytest.raises(ShoalError, match=r"\$RAY_API_SERVER_ADDRESS: ray-head:8265 is not"):
        address(None)
    assert is_exposed("http://10.0.0.1:8265")
    assert not is_exposed("http://localhost:8265")
    assert not is_exposed("https://10.0.0.1:8265")


def test_the_token_is_where_ray_looks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert token() == "of the home"
    (tmp_path / "other").write_text("of the path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert token() == "of the path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert token() == "said"
