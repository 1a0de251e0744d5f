import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BLOCKED = """
import importlib, pkgutil, sys

for name in ("ray", "tensorboard", "torch.utils.tensorboard", "shoal_ray"):
    sys.modules[name] = None

import shoal

found = ["shoal", *(module.name for module in pkgutil.walk_packages(shoal.__path__, "shoal."))]
for name in found:
    importlib.import_module(name)
print(*found)
"""

LAZY = """
import importlib, sys

for name in ("tensorboard", "display", "local", "stop", "cli"):
    importlib.import_module(f"shoal_ray.{name}")
    loaded = [module for module in sys.modules if module == "ray" or module.startswith("ray.")]
    assert not loaded, f"shoal_ray.{name} imports {loaded[0]}"
assert "shoal_ray.train" not in sys.modules
print("fine")
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shoal_imports_without_ray_and_tensorboard() -> None:
    imported = set(python(BLOCKED).split())
    spec = find_spec("shoal")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    files = {file.relative_to(root.parent).with_suffix("") for file in root.rglob("*.py")}
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert imported == modules
    assert {"shoal.loop", "shoal.objectives.gan", "shoal.data.importers.npz"} <= modules


def test_what_runs_without_ray_does_not_import_it() -> None:
    assert python(LAZY).split() == ["fine"]
