"""Who owns a run: names of checkpoints, claims, and that what is newest is so whoever writes whenever."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.storage.s3 import S3

from shoal import ownership
from shoal.checkpoint_names import OWNERS, Claim, Name, claims_among, counts, newest_first
from shoal.errors import FencedError
from shoal.ownership import Hold
from shoal.run import Run
from shoal.storage.location import Location

MakeRun = Callable[..., Run]
SAMPLES = st.integers(0, 10**14)
EPOCHS = st.integers(1, 10**9)


@given(SAMPLES, EPOCHS)
def test_a_name_says_what_it_was_made_of(samples: int, epoch: int) -> None:
    name = Name(samples, epoch)
    assert Name.parse(str(name)) == name
    assert Name.of_temporary(f".{name}.0123abcd.tmp") == name


@given(st.lists(st.tuples(SAMPLES, EPOCHS), unique=True))
def test_names_are_sorted_by_clock_and_then_by_epoch(made: list[tuple[int, int]]) -> None:
    names = [str(Name(*each)) for each in made]
    assert newest_first(names, []) == [str(Name(*each)) for each in sorted(made, reverse=True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "60",
        "²²²²²²²²²²²²",
        "000000000060-1",
        "000000000060-02",
        "000000000060-",
        "0000000000060",
        "000000000060-2-3",
    ],
)
def test_what_is_no_name_of_ours_is_none(text: str) -> None:
    assert Name.parse(text) is None
    assert Name.of_temporary(f".{text}.0123abcd.tmp") is None


def test_those_of_the_first_epoch_are_called_as_before_there_were_any() -> None:
    assert str(Name(600)) == "000000000600"
    assert str(Name(600, 12)) == "000000000600-12"


@given(EPOCHS, st.none() | SAMPLES)
def test_a_claim_says_what_it_was_made_of(epoch: int, samples: int | None) -> None:
    claim = Claim(epoch, "0123456789abcdef", samples)
    assert claims_among([str(claim), "x", f".{claim}.tmp"]) == [claim]


@given(st.lists(st.tuples(st.sampled_from(["claim", "write", "late"]), st.integers(0, 9)), max_size=30))
def test_the_newest_that_counts_is_what_the_last_claimant_reached(story: list[tuple[str, int]]) -> None:
    """Whoever wakes up and writes on, whenever: nothing counts but what the last one that claimed the run has."""
    claims: list[Claim] = []
    there: list[str] = []
    clocks: list[int] = []  # of each incarnation

    def newest() -> int:
        found = [Name.parse(text) for text in newest_first(there, claims)]
        return found[0].samples if found and found[0] else 0

    for event, number in story:
        if event == "claim" or not clocks:
            clocks.append(newest())
            claims.append(Claim(len(clocks), "00", clocks[-1]))
        else:
            epoch = len(clocks) if event == "write" else 1 + number % len(clocks)
            clocks[epoch - 1] += 10
            there.append(str(Name(clocks[epoch - 1], epoch)))
        assert newest() == clocks[-1]


@pytest.fixture
def folder(make_run: MakeRun) -> Location:
    """Return the folder of a run's checkpoints."""
    return Location.parse(make_run().checkpoints)


def files(folder: Location) -> list[str]:
    return sorted(place.name for place in (folder / OWNERS).list())


def test_each_claim_is_of_a_later_epoch_and_fences_the_one_before(folder: Location) -> None:
    holds = []
    for epoch, samples in ((1, 0), (2, 40), (3, 40)):
        holds.append(Hold.take(folder).going_on_from(samples))
        assert holds[-1].epoch == epoch
        holds[-1].refuse_lost()
        for lost in holds[:-1]:
            with pytest.raises(FencedError, match=r"is trained by another process \(pid \d+ on .*, since 20.*\); this"):
                lost.refuse_lost()
            with pytest.raises(FencedError):
                lost.going_on_from(10**6)
    # What the second one said of its clock, the third said again; the first one's says more.
    assert files(folder) == [str(hold.claim) for hold in (holds[0], holds[2])]


def test_a_claim_that_was_never_completed_fences_too_and_is_cleared_away(folder: Location) -> None:
    first = Hold.take(folder).going_on_from(0)
    Hold.take(folder)
    with pytest.raises(FencedError):
        first.refuse_lost()
    third = Hold.take(folder).going_on_from(20)
    assert third.epoch == 3
    assert files(folder) == [str(first.claim), str(third.claim)]


def test_the_epoch_is_greater_than_that_of_any_checkpoint_though_the_claims_are_gone(folder: Location) -> None:
    assert folder.local is not None
    (folder.local / str(Name(600))).mkdir(parents=True)
    assert Hold.take(folder).epoch == 2  # of a run from before there were claims
    shutil.rmtree(folder.local / OWNERS)
    (folder.local / str(Name(600, 7))).mkdir()
    assert Hold.take(folder).epoch == 8
    assert Hold.take(folder, beside=["x", str(Name(900, 11))]).epoch == 12


def test_of_two_that_take_the_same_epoch_one_moves_on(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = Hold(folder, Claim(1, "0" * 16))
    looks = 0

    def look_late(place: Location) -> list[Claim]:
        nonlocal looks
        looks += 1
        if looks == 1:  # it looks for the greatest epoch before the rival's claim is there, and writes after it
            found = claims_of(place)
            rival._write()
            return found
        return claims_of(place)

    claims_of = ownership.claims_on
    monkeypatch.setattr(ownership, "claims_on", look_late)
    hold = Hold.take(folder)
    assert hold.epoch > 1
    assert files(folder) == [str(rival.claim), str(hold.claim)]
    with pytest.raises(FencedError):
        rival.refuse_lost()


def claim_at_once(folders: list[Location]) -> list[Hold]:
    """Let as many threads as there are locations of one folder claim it in the same moment."""
    barrier, holds, problems = threading.Barrier(len(folders)), list[Hold](), list[Exception]()

    def claim(place: Location) -> None:
        barrier.wait()
        try:
            holds.append(Hold.take(place))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=claim, args=(place,)) for place in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    return holds


def owners_among(holds: list[Hold]) -> list[Hold]:
    found = []
    for hold in holds:
        try:
            hold.refuse_lost()
        except FencedError:
            continue
        found.append(hold)
    return found


def test_many_that_claim_at_once_get_an_epoch_each_and_one_of_them_the_run(folder: Location) -> None:
    for _ in range(5):
        holds = claim_at_once([folder] * 8)
        assert len({hold.epoch for hold in holds}) == 8
        assert owners_among(holds) == [max(holds, key=lambda hold: hold.epoch)]


def test_the_same_on_an_object_store(s3: S3) -> None:
    folder = s3.root / "checkpoints"
    (folder / str(Name(600)) / "state.json").write_bytes(b"{}")
    assert Hold.take(folder).epoch == 2
    holds = claim_at_once([folder] * 3)
    assert len({hold.epoch for hold in holds}) == 3
    (owner,) = owners_among(holds)
    owner.going_on_from(600).refuse_lost()
    with pytest.raises(FencedError, match="this one leaves it alone"):
        min(holds, key=lambda hold: hold.epoch).refuse_lost()


def test_a_run_that_vanished_is_not_a_run_that_was_lost(folder: Location) -> None:
    hold = Hold.take(folder).going_on_from(40)
    assert folder.local is not None
    run = folder.local.parent
    run.rename(run.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=str(run)):
        hold.refuse_lost()
    assert not run.exists()  # nothing was made in an empty mount point
    run.with_name("elsewhere").rename(run)
    hold.refuse_lost()
    shutil.rmtree(folder.local)  # by somebody who needed the room
    hold.refuse_lost()
    assert files(folder) == [str(hold.claim)]


def test_the_copy_of_a_run_bears_the_same_claim(folder: Location, tmp_path: Path) -> None:
    home = Hold.take(folder)
    copy = home.in_copy(Location.parse(tmp_path / "copy" / "checkpoints"))
    assert copy.claim == home.claim
    copy.going_on_from(20).refuse_lost()
    Hold.take(folder).in_copy(copy.folder)
    with pytest.raises(FencedError):
        copy.refuse_lost()


def test_what_an_earlier_epoch_wrote_later_counts_no_longer() -> None:
    claims = [Claim(2, "aa", 40), Claim(3, "bb", 60), Claim(4, "cc")]
    for name, expected in (
        (Name(40), True),
        (Name(60), False),
        (Name(60, 2), True),
        (Name(80, 2), False),
        (Name(80, 3), True),
    ):
        assert counts(name, claims) is expected
