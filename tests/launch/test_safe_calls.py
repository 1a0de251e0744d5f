"""No call in the project hands a string to a shell, or reads what could run code; docs/security.md says so."""

import ast
import json
import pickle
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import SafetensorError

from shoal.checkpoint import STATE, TENSORS, read, saved
from shoal.run import Run

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "distributed").rglob("*.py")])

BETWEEN_OUR_PROCESSES = {"src/shoal/data/importers/reader.py", "src/shoal/data/importers/wire.py"}
"""Pickles that a process writes into a pipe to its own child."""

REFUSING = {"src/shoal/data/importers/cifar_pickle.py"}
"""An unpickler that knows arrays and nothing else; tests/data/test_cifar10.py."""


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return f"{name_of(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else "…"


def unsafe(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = name_of(call.func)
        options = {keyword.arg: keyword.value for keyword in call.keywords}

        def says(option: str, value: object, given: dict[str | None, ast.expr] = options) -> bool:
            return isinstance(found := given.get(option), ast.Constant) and found.value is value

        if ("shell" in options and not says("shell", False)) or name in {
            "os.system",
            "os.popen",
            "subprocess.getoutput",
        }:
            yield f"line {call.lineno}: a shell"
        if name in {"eval", "exec"}:
            yield f"line {call.lineno}: {name}"
        if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"} and name.endswith(("load", "loads")):
            yield f"line {call.lineno}: a pickle"
        if name == "torch.load" and not says("weights_only", True):
            yield f"line {call.lineno}: torch.load without weights_only=True"
        if name.endswith("np.load") and "allow_pickle" in options and not says("allow_pickle", False):
            yield f"line {call.lineno}: np.load with pickles"
        if name in {"yaml.unsafe_load", "yaml.full_load"}:
            yield f"line {call.lineno}: {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_it_is_given(path: Path) -> None:
    found = list(unsafe(ast.parse(path.read_text())))
    place = str(path.relative_to(ROOT))
    if place in BETWEEN_OUR_PROCESSES | REFUSING:
        found = [what for what in found if not what.endswith("a pickle")]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(f'ls {path}', shell=True)",
        "subprocess.run(words, shell=yes)",
        "os.system(f'rm {path}')",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "yaml.unsafe_load(text)",
    ],
)
def test_it_would_be_seen(line: str) -> None:
    assert len(list(unsafe(ast.parse(line)))) == 1


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_does_not(
    form: str, make_run: Callable[..., Run], finish: Callable[..., object], tmp_path: Path
) -> None:
    """Also where whoever put it there has made its checksums right."""
    run, sprung = make_run("autoencoder"), tmp_path / "sprung"
    finish(run)
    path = saved(run.checkpoints)[0]
    forge(path, (path / TENSORS).read_bytes())
    assert read(path).tensors()  # the checksums are right
    trap = BytesIO()
    pickle.dump(Trap(sprung), trap) if form == "pickle" else torch.save(Trap(sprung), trap)
    forge(path, trap.getvalue())
    with pytest.raises(SafetensorError):
        read(path).tensors()
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap is one


def forge(path: Path, tensors: bytes) -> None:
    """Put other tensors into a checkpoint, and checksums that fit."""
    (path / TENSORS).write_bytes(tensors)
    state = json.loads((path / STATE).read_text())
    del state["xxh3"]
    state["tensors"] = {"bytes": len(tensors), "xxh3": xxhash.xxh3_64_hexdigest(tensors)}
    digest = xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())
    (path / STATE).write_text(json.dumps({**state, "xxh3": digest}))
