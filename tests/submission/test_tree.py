"""What goes along: git is asked what it would take, and has to agree."""

import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal_ray.submission import tree as trees
from shoal_ray.submission.package import pack
from shoal_ray.submission.tree import gather

NAMES = ("a", "b.txt", "data", "runs", "x.log")
PATTERNS = ("data/", "/runs", "*.log", "!b.txt", "a/*", "!keep.log", "**/b.txt", "data/a", "x?log", "# no", "")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def as_git_sees_it(root: Path) -> set[str]:
    ask = ["git", "-c", "core.excludesFile=", "ls-files", "-o", "--exclude-standard", "-z"]
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return {
        name
        for name in subprocess.run(ask, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        if name
    }


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40)  # each asks git twice
@given(
    files=st.sets(paths, max_size=12),
    rules=st.dictionaries(
        st.sampled_from(("", "a/", "data/", "runs/a/")), st.lists(st.sampled_from(PATTERNS), max_size=4), max_size=3
    ),
)
def test_git_agrees(tmp_path_factory: pytest.TempPathFactory, files: set[str], rules: dict[str, list[str]]) -> None:
    root = tmp_path_factory.mktemp("tree")
    for name in sorted(files):
        if not any(parent in files for parent in (str(parent) for parent in Path(name).parents)):
            write(root, {name: "x"})
    for folder, lines in rules.items():
        if not any((root / parent).is_file() for parent in (folder, *map(str, Path(folder).parents))):
            write(root, {f"{folder}.gitignore": "\n".join(lines)})
    assert set(gather(root).files) == as_git_sees_it(root)


def test_what_no_job_needs_stays_here(tmp_path: Path) -> None:
    wanted = {".gitignore": "/runs/\n", ".rayignore": "big.bin\n!runs/\n", "src/a.py": "", "src/.gitignore": "*.so\n"}
    unwanted = {
        ".git/config": "",
        ".venv/lib/x.py": "",
        "runs/a/metrics.jsonl": "",  # one kind of file does not take back in what the other one excludes
        "big.bin": "",
        "src/a.so": "",
        "src/__pycache__/a.pyc": "",
        ".mypy_cache/x": "",
    }
    tree = gather(write(tmp_path, wanted | unwanted))
    assert list(tree.files) == sorted(wanted)
    _, content = pack(tree)
    (tmp_path / "package.zip").write_bytes(content)
    with ZipFile(tmp_path / "package.zip") as archive:
        assert archive.namelist() == sorted(wanted)
        assert archive.read("src/.gitignore") == b"*.so\n"


def test_links_are_followed_and_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path, {"there/x.py": "x", "tree/y.py": "y"})
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "tree" / "again").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "nowhere").symlink_to(tmp_path / "gone")
    tree = gather(tmp_path / "tree")
    assert set(tree.files) == {"y.py", "linked/x.py"}


def test_too_much_is_refused_and_the_biggest_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "LIMIT_BYTES", 3 * trees.MIB)
    write(
        tmp_path, {"code.py": "x", "nested/deep/one.bin": "x" * 2 * trees.MIB, "nested/deep/two.bin": "x" * trees.MIB}
    )
    with pytest.raises(ConfigError) as refusal:
        gather(tmp_path)
    said = str(refusal.value).splitlines()
    assert said[0].startswith(f"3 file(s), 3.0 MiB, of {tmp_path}, is more than the 3 MiB")
    assert [line.split(maxsplit=2)[2] for line in said[1:-1]] == [
        "nested/deep/",  # and not nested/, which is nothing else
        "nested/deep/one.bin",
        "nested/deep/two.bin",
        "code.py",
    ]
    assert ".rayignore" in said[-1]
    write(tmp_path, {".rayignore": "two.bin"})
    assert set(gather(tmp_path).files) == {".rayignore", "code.py", "nested/deep/one.bin"}


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        gather(tmp_path / "none")
    (tmp_path / "a\nb").touch()
    with pytest.raises(ConfigError, match="rename it"):
        gather(tmp_path)


def test_the_same_content_is_the_same_package(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        write(root, {"b/x.py": "x", "a.sh": "run"})
        (root / "a.sh").chmod(0o755 if root is one else 0o700)
    assert pack(gather(one)) == pack(gather(two))
    write(two, {"b/x.py": "y"})
    assert pack(gather(one))[0] != pack(gather(two))[0]
    (two / "b" / "x.py").unlink()
    assert not gather(two).is_checkout
    write(two, {"src/shoal/__init__.py": "", "distributed/shoal_ray/__init__.py": ""})
    assert gather(two).is_checkout
