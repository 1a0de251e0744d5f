"""Where everyone stands, from the rows alone."""

from typing import Any

import pytest

from shoal_ray.population.orders import Become
from shoal_ray.population.standing import standings

Row = dict[str, Any]


def birth(member: int) -> Row:
    return {"event": "birth", "member": member, "samples": 0, "new": {"lr": float(member)}, "time": 0.0}


def exploit(seq: int, member: int, donor: int, *, root: int, samples: int = 100, **new: Any) -> Row:
    return {
        "event": "exploit",
        "seq": seq,
        "member": member,
        "samples": samples,
        "donor": donor,
        "donor_samples": samples + 1,
        "root": root,
        "new": new or {"lr": 0.5},
        "time": 7.0,
    }


def loaded(seq: int, member: int, source: str) -> Row:
    return {"event": "loaded", "seq": seq, "member": member, "samples": 100, "source": source}


def generation(member: int, number: int) -> Row:
    return {"member": member, "generation": number, "samples": 104 * number, "fitness": 1.0}


BIRTHS = [birth(0), birth(1), birth(2)]


def roots(*rows: Row) -> list[int]:
    return [standing.root for _, standing in sorted(standings([*BIRTHS, *rows], []).items())]


def test_members_are_born_with_their_values_and_as_their_own_roots() -> None:
    found = standings(BIRTHS, [])
    assert [(one.member, one.values, one.root, one.samples, one.generation) for one in found.values()] == [
        (0, {"lr": 0.0}, 0, 0, 0),
        (1, {"lr": 1.0}, 1, 0, 0),
        (2, {"lr": 2.0}, 2, 0, 0),
    ]
    assert all(one.row is None and one.dead is None and not one.orders for one in found.values())


def test_an_exploit_changes_values_donor_and_root_and_is_an_order() -> None:
    one = standings([*BIRTHS, exploit(3, 1, 2, root=2, lr=9.0)], [])[1]
    assert (one.values, one.donor, one.root) == ({"lr": 9.0}, 2, 2)
    assert one.orders == [Become(3, 100, 2, 101, {"lr": 9.0}, 7.0)]


def test_a_root_is_that_of_the_state_that_was_taken_whatever_its_donor_has_become() -> None:
    assert roots(exploit(1, 1, 0, root=0), exploit(2, 2, 1, root=0)) == [0, 0, 0]
    assert roots(exploit(1, 1, 0, root=0), exploit(2, 2, 1, root=1)) == [0, 0, 1]  # its state of before
    assert roots(exploit(1, 2, 1, root=1), exploit(2, 1, 0, root=0), exploit(3, 0, 2, root=1)) == [1, 0, 1]


@pytest.mark.parametrize(
    ("rows", "root"),
    [
        ([loaded(1, 1, "memory")], 2),
        ([loaded(1, 1, "checkpoint")], 2),
        ([loaded(1, 1, "own")], 1),
        ([loaded(1, 1, "own"), loaded(1, 1, "own")], 1),
        ([loaded(1, 1, "memory"), loaded(1, 1, "own")], 1),  # carried out again, when the donor's had gone
        ([loaded(1, 1, "own"), loaded(1, 1, "checkpoint")], 2),  # carried out again, when it was there again
        ([loaded(1, 1, "own"), exploit(2, 1, 0, root=0), loaded(2, 1, "own")], 1),
        (
            [loaded(1, 1, "memory"), exploit(2, 1, 0, root=0), loaded(1, 1, "own")],
            0,
        ),  # the later order is still to come
    ],
)
def test_who_could_not_take_the_donors_weights_descends_from_whom_it_did(rows: list[Row], root: int) -> None:
    assert roots(exploit(1, 1, 2, root=2), *rows)[1] == root


def test_the_newest_start_speaks_for_a_member_and_makes_it_alive() -> None:
    rows: list[Row] = [
        {"event": "start", "member": 0, "samples": 0, "incarnation": "a"},
        {"event": "death", "member": 0, "samples": 100, "reason": "stopped early"},
    ]
    one = standings([*BIRTHS, *rows], [])[0]
    assert (one.incarnation, one.dead) == ("a", "stopped early")
    again = standings([*BIRTHS, *rows, {"event": "start", "member": 0, "samples": 100, "incarnation": "b"}], [])[0]
    assert (again.incarnation, again.dead) == ("b", None)


def test_the_clock_is_that_of_the_last_generation_or_what_it_told_since() -> None:
    rows = [generation(0, 1), generation(1, 1), generation(0, 2)]
    found = standings(BIRTHS, rows)
    assert [(one.samples, one.generation) for one in found.values()] == [(208, 2), (104, 1), (0, 0)]
    assert found[0].rows == [rows[0], rows[2]]
    assert found[0].row == rows[2]
    found[0].live["samples"] = 250
    assert (found[0].samples, found[0].generation) == (250, 2)
