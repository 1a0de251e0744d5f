"""A user's mistake is one message with value, rule and remedy, exit code 2, no traceback and nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal.data import DataSet
from shoal.data.write import write_dataset

Shoal = Callable[..., Any]


def refused(said: Any, *parts: str) -> None:
    assert said.code == 2
    assert "error: " in [line[:7] for line in said.error.splitlines()]
    for part in parts:
        assert part in said.error


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["seed-autoencodr"], ["'seed-autoencodr'", "did you mean 'seed-autoencoder'"]),
        (["seed-autoencoder", "optim.lrr=1"], ["unknown key optim.lrr", "optim.lr"]),
        (["seed-autoencoder", "optm.lr=1"], ["unknown key optm"]),
        (["seed-autoencoder", "nets.laten=3"], ["unknown key nets.laten", "nets.latent"]),
        (["seed-autoencoder", "optim.lr=-1"], ["optim.lr=-1", "greater than 0"]),
        (["seed-autoencoder", "batch=many"], ["batch='many'"]),
        (["seed-autoencoder", "objective.name=gann"], ["gann", "did you mean 'gan'"]),
        (["seed-autoencoder", "data.split=valid"], ["valid", "train"]),
        (["seed-autoencoder", "batch=2", "--workers", "3"], ["batch 2 cannot feed 3 workers", "use batch >= 3"]),
        (["seed-autoencoder", "batch=1e12"], ["batch 1000000000000 is more than the 64 images", "use batch <= 64"]),
        (["seed-autoencoder", "gan"], ["more than one CONFIG"]),
        (["nowhere.yaml"], ["nowhere.yaml does not exist"]),
        ([], ["no CONFIG given"]),
        (["seed-autoencoder", "--plugin", "none.py"], ["none.py", "not a Python file"]),
        (["seed-autoencoder", "--local", "--workers", "2"], ["--local", "torchrun"]),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: Sequence[str], parts: Sequence[str], shoal: Shoal, data: Path, tmp_path: Path
) -> None:
    refused(shoal("train", *words, "--data", data, "--out", "run"), *parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_missing_data_set_says_how_to_make_one(shoal: Shoal) -> None:
    refused(shoal("train", "seed-autoencoder", "--data", "nowhere", "--local"), "nowhere", "shoal data import")
    refused(shoal("train", "seed-autoencoder", "--local"), "--data")


def test_images_of_a_shape_that_the_nets_cannot_make_name_the_sizes_they_can(shoal: Shoal, tmp_path: Path) -> None:
    images = np.zeros((8, 1, 30, 30), np.uint8)
    write_dataset(tmp_path / "odd", {"train": [(images, None)]}, shape=(1, 30, 30), class_names=None, source="test")
    said = shoal("train", "autoencoder", "--data", "odd", "--out", "run", "--local")
    refused(said, "1x30x30", "28, 32, 64, 128")
    assert not (tmp_path / "run").exists()


def test_a_truncated_shard_is_found_before_anything_starts(shoal: Shoal, data: Path, tmp_path: Path) -> None:
    shard = data / "shard-00001.arrow"
    os.truncate(shard, shard.stat().st_size - 1)
    refused(shoal("train", "seed-autoencoder", "--data", data, "--out", "run", "--local"), "shard-00001.arrow")
    assert not (tmp_path / "run").exists()
    refused(shoal("data", "verify", data), "shard-00001.arrow")


def test_a_changed_byte_is_found_in_training_and_by_verify(
    shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path
) -> None:
    shard = data / "shard-00001.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.find(b"\0" * 8, len(damaged) // 2) - 100] ^= 1
    shard.write_bytes(damaged)
    refused(shoal("data", "verify", data), "shard-00001.arrow")
    said = shoal("train", "seed-autoencoder", *tiny, "--data", data, "--out", "run", "--local")
    refused(said, "shard-00001.arrow", "block")


def test_more_workers_than_the_cluster_has_cpus_says_what_fits(
    shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path
) -> None:
    words = ("train", "seed-autoencoder", *tiny, "--data", data, "--out", "run")
    said = shoal(*words, "--workers", "16", "--cpus-per-worker", "100")
    refused(said, "16 workers of 100 CPU each do not fit", "--cpus-per-worker")
    refused(shoal(*words, "--gpus-per-worker", "64"), "64 GPU", "--gpus-per-worker")
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_does_not_answer(shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    said = shoal("train", "seed-autoencoder", *tiny, "--data", data, "--out", "run", "--address", "127.0.0.1:1")
    refused(said, "127.0.0.1:1", "ray start")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(shoal: Shoal, data: Path, trained: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    refused(shoal("train", "seed-autoencoder", "--data", data, "--out", trained, "--local"), "--resume", "--out")
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


def test_a_folder_that_is_no_run_is_not_written_into(shoal: Shoal, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    refused(shoal("train", "seed-autoencoder", "--data", data, "--out", "mine", "--local"), "not a run")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_resume_refuses_other_data(shoal: Shoal, trained: Path, tmp_path: Path) -> None:
    images = np.ones((64, 1, 28, 28), np.uint8)
    write_dataset(tmp_path / "other", {"train": [(images, None)]}, shape=(1, 28, 28), class_names=None, source="test")
    refused(shoal("train", "--resume", "--out", trained, "--data", "other", "--local"), "fingerprint", "--data")


@pytest.mark.parametrize("change", ["batch=32", "nets.latent=4", "seed=1", "optim.name=sgd"])
def test_resume_refuses_a_key_that_may_not_change_and_names_it(change: str, shoal: Shoal, trained: Path) -> None:
    before = (trained / "config.yaml").read_text()
    refused(shoal("train", "--resume", "--out", trained, change, "--local"), change.partition("=")[0], "may not change")
    assert (trained / "config.yaml").read_text() == before


def test_resume_without_a_run(shoal: Shoal) -> None:
    refused(shoal("train", "--resume", "--out", "nowhere", "--local"), "nowhere", "not a run")
    refused(shoal("train", "--resume", "--local"), "--out")


def test_a_corrupt_newest_checkpoint_falls_back_and_says_so(shoal: Shoal, trained: Path) -> None:
    newest = max((trained / "checkpoints").iterdir())
    tensors = newest / "tensors.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(damaged)
    said = shoal("train", "--resume", "--out", trained, "duration_samples=640", "--local")
    assert said.code == 0
    assert "passed over" in said.out
    assert newest.name in said.out
    assert "going on at sample 240" in said.out
    rows = [json.loads(line)["samples"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    assert rows[-1] == 640


def test_an_unreadable_image_is_named_and_counted_when_skipped(shoal: Shoal, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"{index}.png")
    bad = tmp_path / "images" / "dog" / "7.png"
    bad.write_bytes(bad.read_bytes()[:40])
    refused(shoal("data", "import", "folder", "images", "--out", "data"), "7.png", "--skip-bad")
    assert not (tmp_path / "data").exists()
    said = shoal("data", "import", "folder", "images", "--out", "data", "--skip-bad")
    assert said.code == 0
    assert "23 images" in said.out
    assert "1 unreadable" in said.out


def test_an_importer_that_does_not_exist(shoal: Shoal) -> None:
    refused(shoal("data", "import", "foldr", "x", "--out", "y"), "foldr", "did you mean 'folder'")
    refused(shoal("data", "import", "idx"), "--out")


@pytest.mark.parametrize("command", ["eval", "sample", "reconstruct"])
def test_results_of_what_is_no_run(command: str, shoal: Shoal) -> None:
    refused(shoal(command, "nowhere"), "nowhere", "not a run")


def test_results_that_an_objective_cannot_give(shoal: Shoal, trained: Path) -> None:
    refused(shoal("sample", trained), "generates no images", "shoal reconstruct")
    refused(shoal("reconstruct", trained, "--num", "1000"), "--num 1000", "32")
    refused(shoal("eval", trained, "--split", "tset"), "tset", "test")
    refused(shoal("reconstruct", trained, "--out", "x.jpg"), "x.jpg", ".png")


@pytest.mark.parametrize(
    ("out", "parts"),
    [
        ("data/manifest.json/x.png", ["data/manifest.json: ", "give a"]),
        ("x" * 300 + ".png", ["name too long", "give a shorter name"]),
        ("folder", ["--out folder is a directory", "name a file in it"]),
        ("[red]:cat:.jpg", ["[red]:cat:.jpg", ".png"]),
    ],
)
def test_an_out_that_cannot_be_written(
    out: str, parts: Sequence[str], shoal: Shoal, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    refused(shoal("reconstruct", trained, "--num", "4", "--out", out), *parts)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "[b]x"), "[b]x: No such file; check the path"),
        (
            FileExistsError(errno.EEXIST, "File exists", "x.tmp", None, "x"),
            "x: File exists; something else is there already",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"), "x: Not a directory; a file stands where"),
        (OSError(errno.ELOOP, "Too many levels", "x"), "x: Too many levels; its symbolic links lead in a circle"),
        (OSError(errno.ENOSPC, "No space left"), "the disk: No space left; make room"),
        (PermissionError(errno.EACCES, "Permission denied", b"x"), "x: Permission denied; mend its permissions"),
    ],
)
def test_a_path_that_the_system_refuses(
    error: OSError, message: str, shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise error

    monkeypatch.setattr(DataSet, "open", refuse)
    refused(shoal("data", "info", "x"), message)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file"), OSError(errno.EIO, "I/O", "x")])
def test_other_trouble_with_files_keeps_its_traceback(
    error: OSError, shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise error

    monkeypatch.setattr(DataSet, "open", refuse)
    with pytest.raises(type(error)) as caught:
        shoal("data", "info", "x")
    assert caught.value is error


@pytest.mark.parametrize("words", [["presets"], ["presets", "seed-gan"], ["--help"]])
def test_a_reader_that_leaves_ends_the_command_quietly(words: Sequence[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        command = [sys.executable, "-m", "shoal_ray.cli", *words]
        ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_verify_lists_a_wrong_fingerprint_among_the_rest(shoal: Shoal, data: Path) -> None:
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fingerprint":"', '"fingerprint":"0'))
    (data / "shard-00001.arrow").unlink()
    refused(shoal("data", "verify", data), "2 problem(s)", "manifest.json: ", "the fingerprint is", "shard-00001.arrow")


def test_a_tilde_is_the_home_folder(shoal: Shoal, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "some.npz", images=np.zeros((20, 8, 8), np.uint8))
    assert shoal("data", "import", "npz", "~/some.npz", "--out", "~/images").code == 0
    assert (tmp_path / "images" / "manifest.json").is_file()
    for command in ("info", "verify"):
        assert shoal("data", command, "~/images").code == 0
    refused(shoal("data", "info", "~nobody-at-all/images"), "~nobody-at-all/images", "does not exist")


def test_names_are_never_markup(shoal: Shoal, data: Path, trained: Path, tmp_path: Path) -> None:
    odd = trained.rename(tmp_path / "[red]run[bold]:cat:")
    said = shoal("eval", odd)
    assert said.code == 0
    assert "[red]run[bold]:cat:" in said.out
    data.rename(tmp_path / "[b]data")
    assert "[b]data" in shoal("data", "info", "[b]data").out


def test_a_measurement_is_shown_although_it_cannot_be_kept(shoal: Shoal, trained: Path) -> None:
    (trained / "eval.json").mkdir()
    said = shoal("eval", trained, "--json")
    refused(said, "eval.json", "name a file")
    assert json.loads(said.out)["num_samples"] == 32


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Yield a real file system with room for 600 KB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount, to make a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_run_that_its_disk_has_no_room_for_is_refused_with_the_arithmetic_and_not_begun(
    shoal: Shoal, data: Path, tiny: Sequence[str], small_disk: Path
) -> None:
    words = ["seed-autoencoder", *tiny, "--data", data, "--out", small_disk / "run", "--local"]
    said = shoal("train", *words, "checkpoint.keep=99")
    refused(said, f"{small_disk} has 600.0 KiB free", "7 checkpoints of", "choose another --out")
    assert list(small_disk.iterdir()) == []
    assert shoal("train", *words, "checkpoint.keep=1", "report.images_every_samples=0").code == 0
    said = shoal(
        "train", "--resume", "--out", small_disk / "run", "--local", "duration_samples=1e6", "checkpoint.keep=9"
    )
    refused(said, "that it has", "checkpoint.keep")


def test_a_full_disk_leaves_no_half_data_set(shoal: Shoal, small_disk: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", images=np.zeros((2000, 28, 28), np.uint8))
    refused(shoal("data", "import", "npz", "big.npz", "--out", small_disk / "data"), "No space left")
    assert list(small_disk.iterdir()) == []
