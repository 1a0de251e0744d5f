"""What differs between runs, which of their measures compare, and their pictures on one sheet."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from shoal.compare import Measures, Row, Score, compare, read_measures
from shoal.contact_sheet import columns_of, contact_sheet, label
from shoal.data import DataSet
from shoal.differences import ABSENT, differences, names_of, read_flags, read_values
from shoal.errors import RunError
from shoal.loop import Tick
from shoal.model import Model, load_model
from shoal.pixels import to_uint8
from shoal.quality.better import better
from shoal.run import Run

MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]

CPU = torch.device("cpu")


# --- names and configurations ------------------------------------------------------------------------------------


def test_runs_are_named_by_the_shortest_ends_of_their_paths_that_differ(tmp_path: Path) -> None:
    assert names_of([Path("runs/a"), Path("runs/b/")]) == ["a", "b"]
    assert names_of([Path("x/one/a"), Path("x/two/a"), Path("y/b")]) == ["one/a", "two/a", "y/b"]
    assert names_of([tmp_path / "a", tmp_path]) == ["a", tmp_path.name]


def test_one_run_or_the_same_twice_is_nothing_to_compare() -> None:
    with pytest.raises(RunError, match="one run given; give two at least, or use `shoal eval RUN`"):
        names_of([Path("a")])
    with pytest.raises(RunError, match="runs/a is given more than once"):
        names_of([Path("runs/a"), Path("b"), Path("runs/../runs/a")])


def test_only_keys_that_differ_are_told_by_section() -> None:
    one: dict[str, Any] = {"nets": {"name": "mlp", "hidden": [4]}, "seed": 0, "objective": {"code": None}}
    two: dict[str, Any] = {"nets": {"name": "conv", "width": 4}, "seed": 0, "objective": {}}
    three: dict[str, Any] = {"nets": {"name": "mlp", "hidden": [4, 5], "width": None}, "seed": 0, "objective": {}}
    found = differences([one, two, three])
    assert found == {
        "nets.name": ("mlp", "conv", "mlp"),
        "nets.hidden": ([4], ABSENT, [4, 5]),
        "nets.width": (ABSENT, 4, None),
        "objective.code": (None, ABSENT, ABSENT),
    }
    assert list(found) == ["nets.name", "nets.hidden", "nets.width", "objective.code"]
    assert differences([one, one]) == {}


def test_an_older_configuration_says_what_it_left_unsaid(make_run: MakeRun) -> None:
    run, other = make_run("autoencoder"), make_run("autoencoder", "optim.eps=1e-7")
    file = run.path / "config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["optim"]["eps"], values["init_from"]
    file.write_text(yaml.safe_dump(values))
    assert differences([read_values(run.path), read_values(other.path)]) == {"optim.eps": (1e-8, 1e-7)}


def test_the_configuration_of_somebody_elses_objective_is_read_as_it_is_written(make_run: MakeRun) -> None:
    run, other = make_run("autoencoder"), make_run("autoencoder")
    file = run.path / "config.yaml"
    file.write_text(file.read_text().replace("name: autoencoder", "name: somebody-elses"))
    assert differences([read_values(run.path), read_values(other.path)]) == {
        "objective.name": ("somebody-elses", "autoencoder")
    }


def test_where_runs_were_trained_is_told_as_flags(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    run.save(run.data, {"workers": 3})
    assert read_flags(run.path) == {"--data": str(run.data), "--workers": 3}
    (run.path / "environment.json").write_text("{")
    assert read_flags(run.path) == {}
    assert read_flags(tmp_path) == {}


@pytest.mark.parametrize("content", ["{", "[1]", "\0"])
def test_a_damaged_configuration_is_refused(make_run: MakeRun, content: str) -> None:
    run = make_run()
    (run.path / "config.yaml").write_text(content)
    with pytest.raises(RunError, match=r"(?s)config\.yaml is damaged \(.*\); leave this run out"):
        read_values(run.path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        read_values(tmp_path)


# --- measures ----------------------------------------------------------------------------------------------------


def measures(name: str = "a", **changes: Any) -> Measures:
    scores = {"quality/mse": Score(0.5, n=100), "fd/cnn:1": Score(7.0, n=100), "kd/cnn:1": Score(7.0, n=100)}
    known: dict[str, Any] = {"split": "test", "fingerprint": "f" * 64, "samples": 60, "scores": scores}
    return Measures(path=Path(f"runs/{name}"), **(known | changes))


def test_the_best_of_a_row_is_the_lowest_or_the_highest_as_the_measure_says() -> None:
    found = compare(
        [
            measures("a", scores={"quality/mse": Score(0.5), "quality/psnr": Score(20.0), "is/x": Score(2.0)}),
            measures("b", scores={"quality/mse": Score(0.4), "quality/psnr": Score(21.0), "fd/x": Score(9.0)}),
            None,
            measures("d", scores={"quality/mse": Score(0.4), "quality/psnr": Score(2.0), "is/x": Score(1.0)}),
        ]
    )
    assert found == [
        Row("quality/mse", "lower", (Score(0.5), Score(0.4), None, Score(0.4)), (1, 3)),
        Row("quality/psnr", "higher", (Score(20.0), Score(21.0), None, Score(2.0)), (1,)),
        Row("is/x", "higher", (Score(2.0), None, None, Score(1.0)), (0,)),
        Row("fd/x", "lower", (None, Score(9.0), None, None), ()),  # alone, it is best of nothing
    ]
    assert compare([None, None]) == []


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("quality/nll", "lower"),
        ("quality/elbo", "higher"),
        ("quality/active_units", None),
        ("quality/bits_per_image", None),
        ("quality/somebody-elses", None),
        ("fid", "lower"),
        ("kd/cnn:1/2", "lower"),
        ("coverage/x", "higher"),
    ],
)
def test_the_direction_of_a_measure(name: str, direction: str | None) -> None:
    assert better(name) == direction


def test_a_measure_of_no_known_direction_has_no_best() -> None:
    scores = {"quality/active_units": Score(3.0)}
    assert compare([measures("a", scores=scores), measures("b", scores=scores)])[0].best == ()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"split": "val"}, ["on different splits: test and val", "`shoal eval runs/b --split test`"]),
        (
            {"fingerprint": "e" * 64},
            ["on different data sets: fingerprint ffffffffffff… and fingerprint eeeeeeeeeeee…", "--data DIR"],
        ),
        (
            {"scores": {"quality/mse": Score(0.5, n=40), "fd/cnn:1": Score(7.0, n=100)}},
            [
                "on different numbers of images (quality/mse): 100 and 40",
                "`shoal eval runs/a --num 100` and `shoal eval runs/b --num 100`",
            ],
        ),
        (
            {"scores": {"fd/cnn:1": Score(0.5, n=400)}},
            ["(fd/cnn:1): 100 and 400", "`shoal eval runs/a --num 400 --extractor cnn:1`"],
        ),
        (
            {"scores": {"fd/cnn:2": Score(0.5, n=100)}},
            ["by different extractors (fd): cnn:1 and cnn:2", "`shoal eval runs/b --num 100 --extractor cnn:1`"],
        ),
        (
            {"scores": {"fid": Score(3.0, n=400), "kd/inception:1": Score(0.5, n=400)}},
            ["by different extractors (kd)", "`shoal eval runs/b --num 100 --extractor cnn:1`"],
        ),
    ],
)
def test_scores_that_say_nothing_of_each_other_are_refused_with_the_command_that_mends_it(
    changes: dict[str, Any], parts: list[str]
) -> None:
    for others in ([], [None]):
        with pytest.raises(RunError) as told:
            compare([measures("a"), *others, measures("b", **changes)])
        for part in ["runs/a and runs/b were measured", *parts]:
            assert part in str(told.value)


def test_fid_is_taken_anew_with_its_own_weights() -> None:
    one = measures("a", scores={"fid": Score(3.0, n=40)})
    with pytest.raises(RunError, match="`shoal eval runs/a --num 100 --inception-weights FILE`"):
        compare([one, measures("b", scores={"fid": Score(3.0, n=100)})])
    with pytest.raises(RunError, match="`shoal eval runs/b --num 40 --inception-weights FILE`"):
        compare([replace(one, scores={"kd/inception:1": Score(3.0, n=40)}), measures("b")])


def test_a_score_by_both_extractors_compares_where_they_are_the_same() -> None:
    both = {"fd/cnn:1": Score(1.0, n=100), "fd/cnn:2": Score(2.0, n=100)}
    found = compare([measures("a", scores=both), measures("b", scores={"fd/cnn:2": Score(1.0, n=100)})])
    assert [(row.name, row.best) for row in found] == [("fd/cnn:1", ()), ("fd/cnn:2", (1,))]


def test_what_is_not_known_of_an_older_file_is_no_reason_to_refuse() -> None:
    assert compare([measures("a"), measures("b", fingerprint=None, samples=None)])


def test_an_evaluation_is_read_with_its_details(make_run: MakeRun) -> None:
    run = make_run()
    assert read_measures(run.path) is None
    known = {
        "split": "test",
        "num_samples": 32,
        "metrics": {"quality/mse": 0.5, "fd/x:1": 3, "quality/nll": None, "quality/elbo": float("nan")},
        "details": {"fd/x:1": {"n": 20, "low": 2.5, "high": 3.5, "floor": 0.25}},
        "extractor": {"id": "x:1"},
        "fingerprint": "abc",
        "samples": 60,
    }
    (run.path / "eval.json").write_text(json.dumps(known))
    assert read_measures(run.path) == Measures(
        path=run.path,
        split="test",
        fingerprint="abc",
        samples=60,
        scores={"quality/mse": Score(0.5, n=32), "fd/x:1": Score(3.0, n=20, low=2.5, high=3.5, floor=0.25)},
    )


def test_an_older_evaluation_was_taken_on_the_data_that_the_run_was_trained_on(
    make_run: MakeRun, finish: Finish, small_data: Path
) -> None:
    run = make_run("autoencoder", "duration_samples=20")
    old = {"split": "test", "num_samples": 32, "metrics": {"quality/mse": 0.5}}
    (run.path / "eval.json").write_text(json.dumps(old))
    before = read_measures(run.path)
    assert before is not None
    assert before.fingerprint is None
    finish(run)
    after = read_measures(run.path)
    assert after is not None
    assert after.fingerprint == DataSet.open(small_data).fingerprint


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"split": "test", "num_samples": 3, "metrics": 4}', '{"split": "t", "metrics": {"a": 1}}',
     '{"split": "t", "num_samples": 3, "metrics": {"a": "x"}}',
     '{"split": "t", "num_samples": 3, "metrics": {"a": 1}, "details": [1]}'],
)  # fmt: skip
def test_a_damaged_evaluation_is_refused(make_run: MakeRun, content: str) -> None:
    run = make_run()
    (run.path / "eval.json").write_text(content)
    with pytest.raises(RunError, match=rf"eval\.json is damaged .* make it anew: `shoal eval {run.path}`"):
        read_measures(run.path)


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(make_run: MakeRun, finish: Finish) -> Callable[..., Model]:
    def train(*overrides: str, data: Path | None = None) -> Model:
        run = make_run("autoencoder", "duration_samples=20", *overrides, data=data)
        finish(run)
        return load_model(run.path, CPU)

    return train


def tile(sheet: np.ndarray, top: int, column: int, size: int) -> np.ndarray:
    """Return the image of a column in the line of images that begins at a row, [C, H, W]."""
    left = column * (size + 2)
    return sheet[top : top + size, left : left + size].transpose(2, 0, 1)


def test_the_same_originals_stand_above_the_reconstructions_of_each_model(
    model: Callable[..., Model], small_data: Path
) -> None:
    models = {"one": model(), "two": model("seed=1")}
    originals = torch.from_numpy(DataSet.open(small_data).rows("test", 0, columns_of((1, 28, 28))).copy())
    sheet = contact_sheet(models, originals)
    assert sheet is not None
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * (20 + 28 + 2), 16 * 30 - 2, 1)  # a label, a line of images and a gap, three times
    expected = [originals, *(to_uint8(each.reconstruct(originals), "unit") for each in models.values())]
    for line, images in enumerate(expected):
        for column, image in enumerate(images):
            assert np.array_equal(tile(sheet, line * 50 + 20, column, 28), image.numpy())
    assert not np.array_equal(expected[1], expected[2])
    labels = [sheet[line * 50 : line * 50 + 20, :, 0] for line in range(3)]
    for text, drawn in zip(("originals", "one: reconstructions", "two: reconstructions"), labels, strict=True):
        assert np.array_equal(drawn, label(text, 478, 1)[..., 0])
        assert (drawn < 128).sum() > 50  # there is ink
    assert not np.array_equal(labels[1], labels[2])


def test_wide_colour_images_stand_in_shorter_lines_and_a_label_has_room(
    model: Callable[..., Model], colour_data: Path
) -> None:
    originals = torch.from_numpy(DataSet.open(colour_data).rows("test", 0, 2).copy())
    sheet = contact_sheet({"one": model(data=colour_data)}, originals)
    assert sheet is not None
    assert sheet.shape == (2 * (20 + 32 + 2), 240, 3)
    assert np.array_equal(tile(sheet, 20, 1, 32), originals[1].numpy())
    assert (sheet[20:, 66:] == 255)[:34].all()
    assert columns_of((3, 48, 48)) == 16
    assert columns_of((3, 64, 64)) == 8


def test_without_originals_an_autoencoder_has_no_picture(model: Callable[..., Model]) -> None:
    assert contact_sheet({"one": model()}, None) is None
    assert contact_sheet({}, None) is None


def test_samples_are_drawn_from_the_same_noise(make_run: MakeRun, finish: Finish) -> None:
    models = {}
    for name in ("same", "again", "other"):
        run = make_run("gan", "duration_samples=20", f"seed={int(name == 'other')}")
        finish(run)
        models[name] = load_model(run.path, CPU)
    sheet = contact_sheet(models, None)
    assert sheet is not None
    block = 20 + 4 * 30
    assert sheet.shape == (3 * block, 16 * 30 - 2, 1)
    blocks = [sheet[start + 20 : start + block] for start in range(0, 3 * block, block)]
    assert np.array_equal(blocks[0], blocks[1])
    assert not np.array_equal(blocks[0], blocks[2])
    images = to_uint8(models["other"].sample(64), "unit").numpy()
    for index in (0, 17, 63):
        assert np.array_equal(tile(blocks[2], index // 16 * 30, index % 16, 28), images[index])


def test_models_of_different_shapes_are_refused(model: Callable[..., Model], colour_data: Path) -> None:
    models = {"grey": model(), "colour": model(data=colour_data)}
    with pytest.raises(RunError, match=r"grey makes images of 1x28x28 and colour of 3x32x32; .* Compare runs of one"):
        contact_sheet(models, None)


@pytest.mark.parametrize("text", ["", "x", "a name that is much too long for so few pixels", "naïve ü 鳥", "a\nb"])
def test_a_label_fits_its_line(text: str) -> None:
    drawn = label(text, 120, 3)
    assert drawn.shape == (20, 120, 3)
    assert (drawn[:, :4] > 200).all()
    assert (drawn[:, -4:] > 200).all()


def test_what_is_too_long_for_a_label_loses_its_middle() -> None:
    start, end = label("run-with-a-long-name", 90, 1), label("run-with-another-long-name", 90, 1)
    assert np.array_equal(start[:, :30], end[:, :30])
    assert np.array_equal(start[:, -35:], end[:, -35:])
