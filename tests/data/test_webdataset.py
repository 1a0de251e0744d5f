import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.data.rows_of import rows_of

from shoal.data.importers import tar_samples, webdataset
from shoal.data.importers.tar_samples import read_samples
from shoal.data.importers.webdataset import open_webdataset
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 5), dtype=np.uint8)

Member = tuple[str, bytes]
Write = Callable[..., Path]


def encode(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, kind)
    return file.getvalue()


FILES = [encode(image) for image in X]


def make_tar(members: Sequence[Member | tarfile.TarInfo]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return data.getvalue()


def samples(start: int, stop: int, label: Callable[[int], object] | None = lambda i: i % 3) -> list[Member]:
    return [
        member
        for i in range(start, stop)
        for member in [
            (f"{i:04}.png", FILES[i]),
            *([] if label is None else [(f"{i:04}.cls", f"{label(i)}\n".encode())]),
        ]
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(name: str, members: Sequence[Member | tarfile.TarInfo], compress: bool = False) -> Path:
        file = tmp_path / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = make_tar(members)
        file.write_bytes(gzip.compress(data) if compress else data)
        return file

    return save


def labels_of(path: Path) -> list[int] | None:
    labels = rows_of(open_webdataset(path)).labels["train"]
    return None if labels is None else labels.tolist()


def test_tars_of_several_splits(write: Write) -> None:
    write("set-train-000.tar", samples(0, 4))
    write("set-train-001.tar", samples(4, 6))
    src = write("set-val-000.tar.gz", samples(6, 12), compress=True).parent
    source = open_webdataset(src)
    assert (source.kind, source.shape, source.num_rows, source.encoded) == ("webdataset", (3, 4, 5), 12, False)
    assert (source.splits, source.class_names) == (["train", "val"], ["0", "1", "2"])
    assert [unit.split for unit in source.units] == ["train", "train", "val"]
    read = rows_of(source)
    assert np.array_equal(read.images["train"], X[:6])
    assert np.array_equal(read.images["val"], X[6:])
    assert read.labels["val"] is not None
    assert read.labels["val"].tolist() == [0, 1, 2, 0, 1, 2]
    assert open_webdataset(src / "set-train-{000..001}.tar").num_rows == 6


def test_a_large_tar_is_several_units(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "UNIT_BYTES", 5 * 60)
    long = "x" * 200 + "é"  # names that need a header of their own, before the one of the member
    members = [("README", b""), *((f"{long}{name}", data) for name, data in samples(0, 12)), ("z.txt", b"")]
    plain, packed = write("a.tar", members), write("b.tar.gz", members, compress=True)
    for path, num_units in ((plain, 3), (packed, 1)):
        source = open_webdataset(path)
        read = rows_of(source)
        assert len(source.units) == num_units
        assert np.array_equal(read.images["train"], X)
        assert read.labels["train"] is not None
        assert read.labels["train"].tolist() == [i % 3 for i in range(12)]
    write("0.tar", [("README", b"")])
    assert len(open_webdataset(plain.parent).units) == 4
    middle = open_webdataset(plain).units[1]
    assert [sample.key[-4:] for sample in read_samples(plain, middle.start, middle.stop)] == [
        f"{i:04}" for i in range(5, 10)
    ]


def test_labels_by_name_number_json_or_not_at_all(write: Write) -> None:
    by_name = write("a.tar", samples(0, 4, lambda i: ["dog", "7", "cat", -1][i]))
    assert open_webdataset(by_name).class_names == ["7", "cat", "dog"]
    assert labels_of(by_name) == [2, 0, 1, -1]
    document = [
        (f"{i}.{kind}", data)
        for i in range(3)
        for kind, data in (("json", json.dumps({"label": [4, None, 0][i], "url": "x"}).encode()), ("PNG", FILES[i]))
    ]
    in_json = write("b.tar", [*document[:2], *document[4:]])
    assert open_webdataset(in_json).class_names == ["0", "1", "2", "3", "4"]
    assert labels_of(in_json) == [4, 0]
    assert labels_of(write("c.tar", samples(0, 3, None))) is None
    assert labels_of(write("d.tar", [("a.json", b"[1]"), ("a.png", FILES[0]), ("a.txt", b"cls")])) is None
    both = [("a.cls", b"1"), ("a.json", b'{"label": 0}'), ("a.png", FILES[0])]
    assert labels_of(write("e.tar", both)) == [1]
    assert labels_of(write("f.tar", [both[1], both[0], both[2]])) == [1]


def test_keys_end_at_the_first_dot_of_the_base_name(write: Write) -> None:
    members = [
        ("./v1.0/", b""),
        ("./v1.0/._a.jpg", b"of a Mac"),
        ("./v1.0/a.seg.png", b"not this one"),
        ("./v1.0/a.jpg", encode(X[0], "JPEG")),
        ("./v1.0/a.cls", b"1"),
        ("./v1.1/a.jpeg", encode(X[1], "JPEG")),
        ("./v1.1/a.cls", b"0"),
        ("README", b"hello"),
    ]
    assert [sample.key for sample in read_samples(write("a.tar", members[1:]))] == ["./v1.0/a", "./v1.1/a"]
    assert labels_of(write("a.tar", members[1:])) == [1, 0]


def test_hostile_names_are_only_names(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    names = ["../../evil", "/etc/evil", "a\x1b[31m/evil", "\udcff", "x" * 300]
    path = write("a.tar", [member for name in names for member in ((f"{name}.png", FILES[0]), (f"{name}.cls", b"0"))])
    assert labels_of(path) == [0] * 5
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(DataError) as error:
        open_webdataset(write("b.tar", [("\x1b[31m.cls", b"0")]))
    assert "\x1b" not in str(error.value)
    assert r"'\x1b[31m'" in str(error.value)


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(write: Write, kind: bytes) -> None:
    with pytest.raises(DataError, match=r"a.tar: member a.png is not a file but a link or a device"):
        open_webdataset(write("a.tar", [link(kind)]))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"0")], r"sample a has no image \(jpg, jpeg, png\); add it, sort the tar"),
        ([*samples(0, 2), ("b.png", FILES[2])], r"sample b has no label .*, but .*sample 0000 has"),
        ([("b.png", FILES[2]), *samples(0, 2)], r"sample b has no label .*, but .*sample 0000 has"),
        (
            [("a.png", FILES[0]), ("b.png", FILES[1]), ("a.cls", b"0"), ("b.cls", b"1")],
            r"sample a has no image .*--sort",
        ),
        ([("a.png", FILES[0]), ("a.PNG", FILES[0])], r"member a.PNG is there twice"),
        ([("a.png", FILES[0]), ("a.jpg", FILES[0])], r"member a.jpg is a second image of its sample"),
        ([("a.cls", b"\xff"), ("a.png", FILES[0])], r"member a.cls is not text"),
        ([("a.json", b"{"), ("a.png", FILES[0])], r"member a.json is not JSON"),
        ([("a.json", b"[" * 100_000), ("a.png", FILES[0])], r"member a.json is not JSON"),
        ([("a.json", b'{"label": [1]}'), ("a.png", FILES[0])], r"a.json: label \[1\] must be the number or the name"),
        ([("a.json", b'{"label": true}'), ("a.png", FILES[0])], r"a.json: label true must be"),
        (samples(0, 2, lambda i: i - 3), r"src/a.tar has the label -3; classes are numbered from 0"),
        (samples(0, 2, lambda i: 70_000), r"label 70,000 is too large"),
        ([], r"a.tar: it has no images"),
        ([("README", b"")], r"a.tar: it has no images"),
    ],
)
def test_refused(write: Write, members: list[Member], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_webdataset(write("a.tar", members))


def test_unsorted_members_are_refused_with_skip_bad_too(write: Write) -> None:
    path = write("a.tar", [("a.png", FILES[0]), ("b.png", FILES[1]), ("a.cls", b"0"), ("b.cls", b"1")])
    with pytest.raises(DataError, match=r"sample a has no label .*--sort=name"):
        open_webdataset(path, skip_bad=True)


def test_large_members(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_samples, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match=r"member 0000.png has 1\d\d bytes, and 10 are the most"):
        open_webdataset(write("a.tar", samples(0, 1)))


@pytest.mark.parametrize("bad", [None, b"hello", FILES[5][: len(FILES[5]) // 2]])
def test_unreadable_images(write: Write, bad: bytes | None) -> None:
    members = samples(0, 3)
    members[2:3] = [] if bad is None else [("0001.png", bad)]
    path = write("a.tar", members)
    with pytest.raises(DataError, match=r"a.tar: sample 0001 (has no image|cannot be read)"):
        rows_of(open_webdataset(path))
    read = rows_of(open_webdataset(path, skip_bad=True))
    assert read.num_skipped == 1
    assert np.array_equal(read.images["train"], X[[0, 2]])
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == [0, 2]


def test_files_are_kept(write: Write) -> None:
    source = open_webdataset(write("a.tar", samples(0, 5)), keep_encoded=True)
    assert source.encoded
    assert rows_of(source).images["train"] == FILES[:5]


def test_size_and_mode(write: Write) -> None:
    path = write("a.tar", [*samples(0, 2), ("z.png", encode(np.zeros((3, 9, 9), np.uint8))), ("z.cls", b"0")])
    with pytest.raises(DataError, match=r"sample z has 9x9 pixels .* but .*sample 0000 has 4x5"):
        rows_of(open_webdataset(path))
    assert rows_of(open_webdataset(path, size=6, mode="L")).images["train"].shape == (3, 1, 6, 6)


WHOLE = make_tar(samples(0, 2))
END = len(WHOLE.rstrip(b"\0"))


@pytest.mark.parametrize("compress", [False, True])
def test_every_truncation_is_found(tmp_path: Path, compress: bool) -> None:
    data = gzip.compress(WHOLE, mtime=0) if compress else WHOLE[: END // 512 * 512 + 1024]
    path = tmp_path / "a.tar"
    for length in range(0, len(data) - (0 if compress else 512), 1 if compress else 37):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"a.tar is not a whole tar file: .+; fetch it again"):
            list(read_samples(path))
    path.write_bytes(data)
    assert [sample.label for sample in read_samples(path)] == [0, 1]


@given(offset=st.integers(0, 511), which=st.integers(0, 3), bit=st.integers(0, 7))
def test_a_damaged_header_is_found(tmp_path_factory: pytest.TempPathFactory, offset: int, which: int, bit: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        start = archive.getmembers()[which].offset
    data = bytearray(WHOLE)
    data[start + offset] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    path.write_bytes(data)
    try:
        found = list(read_samples(path))
    except DataError:
        return
    assert 148 <= offset < 156  # blanks around the digits of the checksum itself mean nothing
    assert found == list(read_samples(write_whole(path)))


def write_whole(path: Path) -> Path:
    path.write_bytes(WHOLE)
    return path


def test_a_damaged_gzip_is_found(tmp_path: Path) -> None:
    whole = gzip.compress(WHOLE, mtime=0)
    path = tmp_path / "a.tar.gz"
    num_found = 0
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 16
        path.write_bytes(data)
        try:
            list(read_samples(path))
        except DataError:
            num_found += 1
        else:  # the same zeros may be copied from elsewhere
            assert gzip.decompress(data) == WHOLE
    assert num_found > 0.95 * len(whole)


def test_a_hole_does_not_pass_for_the_end(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        start = archive.getmembers()[2].offset
    path = tmp_path / "a.tar"
    path.write_bytes(WHOLE[:start] + bytes(1024) + WHOLE[start + 1024 :])
    with pytest.raises(DataError, match="has something else behind it"):
        list(read_samples(path))
    path.write_text("no tar")
    with pytest.raises(DataError, match="not a whole tar file"):
        list(read_samples(path))
