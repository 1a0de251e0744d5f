"""Whose weights a stretch of training began with, and the page that draws it."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.run import read_rows
from shoal_ray.population.lineage_page import lineage_page
from shoal_ray.population.pedigree import Mode, Segment, line_to, segments, winning_line

Row = dict[str, Any]
LR, LATENT = "optim.lr", "nets.latent"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def birth(member: int, **values: Any) -> Row:
    return {"event": "birth", "member": member, "samples": 0, "new": values, "time": 0.0}


def exploit(seq: int, member: int, samples: int, donor: int, donor_samples: int | None = None, **new: Any) -> Row:
    at = samples if donor_samples is None else donor_samples
    return {
        "event": "exploit",
        "seq": seq,
        "member": member,
        "samples": samples,
        "donor": donor,
        "donor_samples": at,
        "state": f"{donor}@{at}",
        "old": {},
        "new": new,
        "before": 2.0,
        "after": 1.0,
        "gap": None,
        "time": 0.0,
    }


def mutation(seq: int, member: int, samples: int, **new: Any) -> Row:
    return {"event": "mutation", "seq": seq, "member": member, "samples": samples, "old": {}, "new": new, "how": {}}


def loaded(seq: int, member: int, samples: int, state: str, source: str = "memory") -> Row:
    return {
        "event": "loaded",
        "seq": seq,
        "member": member,
        "samples": samples,
        "state": state,
        "source": source,
        "seconds": 0.03,
    }


def death(member: int, samples: int, reason: str = "finished") -> Row:
    return {"event": "death", "member": member, "samples": samples, "reason": reason}


def row(member: int, samples: int, fitness: float | None, **values: Any) -> Row:
    return {
        "member": member,
        "generation": samples // 10,
        "samples": samples,
        "fitness": fitness,
        "metrics": {"quality/mse": fitness},
        "values": values,
        "state": "trained" if fitness is not None else "diverged",
    }


def drawn(found: Sequence[Segment]) -> list[tuple[int, int, int, int | None]]:
    """Return (member, start, end, parent) of each."""
    return [(one.member, one.start_samples, one.end_samples, one.parent) for one in found]


# --- segments ----------------------------------------------------------------------------------------------------


def test_a_chain_of_exploits_leads_back_to_the_first_donor() -> None:
    events = [birth(0, lr=1), birth(1, lr=2), birth(2, lr=3)]
    events += [exploit(1, 1, 10, 0, lr=1), mutation(1, 1, 10, lr=1.25), loaded(1, 1, 10, "0@10")]
    events += [exploit(2, 2, 20, 1, lr=1.25), exploit(3, 0, 20, 1, lr=0.8)]
    rows = [row(member, at, 1.0 + member + 1 / at) for at in (10, 20, 30) for member in range(3)]
    found = segments(events, rows)
    assert drawn(found) == [
        (0, 0, 20, None),
        (1, 0, 10, None),
        (2, 0, 20, None),
        (1, 10, 30, 0),
        (2, 20, 30, 3),
        (0, 20, 30, 3),
    ]
    assert [one.values["lr"] for one in found] == [1, 2, 3, 1.25, 1.25, 0.8]
    assert [one.fitness for one in found] == pytest.approx([1.05, 2.1, 3.05, 2 + 1 / 30, 3 + 1 / 30, 1 + 1 / 30])
    assert [one.source_seq for one in found] == [None, None, None, 1, 2, 3]
    assert [one.parent_samples for one in found] == [None, None, None, 10, 20, 20]
    assert winning_line(found, "min") == [0, 3, 5]
    assert winning_line(found, "max") == [0, 3, 4]


def test_a_donor_that_changes_at_the_same_clock_gave_what_it_had_before() -> None:
    events = [birth(0), birth(1), birth(2), exploit(1, 0, 10, 2), exploit(2, 1, 10, 0)]
    found = segments(events, [row(member, 20, 1.0) for member in range(3)])
    assert drawn(found)[3:] == [(0, 10, 20, 2), (1, 10, 20, 0)]


def test_members_that_do_not_wait_take_weights_of_another_clock_value() -> None:
    events = [birth(0), birth(1), birth(2), exploit(1, 0, 30, 2, 20)]
    events += [exploit(2, 1, 10, 0, 40), exploit(3, 2, 50, 0, 25)]
    found = segments(events, [row(0, 60, 1.0), row(1, 60, 2.0), row(2, 60, 3.0)])
    assert drawn(found) == [
        (0, 0, 30, None),
        (1, 0, 10, None),
        (2, 0, 50, None),
        (0, 30, 60, 2),
        (1, 10, 60, 3),  # the clock of 0 said 40: after its own change at 30
        (2, 50, 60, 0),  # and 25: before it
    ]
    assert [one.parent_samples for one in found[3:]] == [20, 40, 25]


@pytest.mark.parametrize("state", ["0@10", "1@10"])
def test_a_donor_that_vanished_leaves_a_member_its_own_weights_with_the_new_values(state: str) -> None:
    events = [birth(0, lr=1), birth(1, lr=2), exploit(4, 1, 10, 0, lr=1.25), loaded(4, 1, 10, state, "own")]
    found = segments(events, [row(1, 20, 0.5)])
    assert drawn(found)[2] == (1, 10, 20, 1)
    assert found[2].values == {"lr": 1.25}
    assert found[2].parent_samples == 10
    assert winning_line(found, "min") == [1, 2]


def test_what_was_really_loaded_counts_not_what_was_decided() -> None:
    events = [
        birth(0),
        birth(1),
        birth(2),
        exploit(1, 0, 20, 2),
        exploit(2, 1, 30, 0),
        loaded(2, 1, 30, "0@10", "checkpoint"),
    ]
    found = segments(events, [row(member, 40, 1.0) for member in range(3)])
    assert drawn(found)[4] == (1, 30, 40, 0)
    assert found[4].parent_samples == 10
    assert drawn(segments(events[:-1], []))[4] == (1, 30, 30, 3), "without the row, the decision"


def test_a_load_that_is_repeated_may_find_weights_that_are_younger_than_the_decision() -> None:
    events = [birth(0), birth(1), birth(2), exploit(1, 1, 10, 0), exploit(2, 0, 20, 2), loaded(1, 1, 10, "0@30")]
    found = segments(events, [row(member, 40, 1.0) for member in range(3)])
    assert drawn(found)[3:] == [(0, 20, 40, 2), (1, 10, 40, 3)]


def test_what_a_resume_tells_again_counts_once() -> None:
    told = [birth(0, lr=1), birth(1, lr=2), exploit(1, 1, 10, 0, lr=3), loaded(1, 1, 10, "0@10")]
    rows = [row(1, 10, 9.0), row(1, 20, 8.0)]
    once = segments(told, [*rows, row(1, 20, 7.0)])
    assert once == segments([*told, *told], [*rows, row(1, 20, 7.0)])
    assert once[2].fitness == 7.0, "of a generation that was trained again, the later row"


def test_a_mutation_alone_goes_on_with_the_own_weights() -> None:
    found = segments([birth(0, lr=1, size=4), mutation(1, 0, 10, lr=2)], [row(0, 10, 3.0), row(0, 20, 2.0)])
    assert drawn(found) == [(0, 0, 10, None), (0, 10, 20, 0)]
    assert [dict(one.values) for one in found] == [{"lr": 1, "size": 4}, {"lr": 2, "size": 4}]


def test_members_whose_birth_is_missing_are_known_by_what_they_did() -> None:
    found = segments([exploit(1, 1, 10, 0)], [row(0, 10, 1.0, lr=5), row(2, 10, 1.5, lr=6)])
    assert sorted(drawn(found)[:2]) == [(0, 0, 10, None), (1, 0, 10, None)]
    assert drawn(found)[2][:3] == (1, 10, 10)
    assert found[2].parent is not None
    assert found[found[2].parent].member == 0
    assert {one.member: dict(one.values) for one in found if one.member != 1} == {0: {"lr": 5}, 2: {"lr": 6}}


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    events = [birth(0), birth(1), exploit(1, 1, 10, 0), loaded(1, 1, 10, "1@10", "own")]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "lineage.jsonl").write_text(text[:-20])
    found = segments(read_rows(tmp_path / "lineage.jsonl"), [row(1, 20, 1.0)])
    assert drawn(found)[2] == (1, 10, 20, 0), "as decided, because nothing says otherwise"


def test_a_fitness_that_is_not_finite_is_none_and_wins_nothing() -> None:
    rows = [row(0, 10, 1.0), row(0, 20, None), row(1, 10, float("nan")), row(2, 10, 5.0)]
    found = segments([birth(member) for member in range(4)], rows)
    assert [one.fitness for one in found] == [None, None, 5.0, None]
    assert winning_line(found, "min") == [2]
    assert winning_line([found[0], found[1]], "min") == []
    assert winning_line([], "max") == []


def test_where_all_ended_without_a_fitness_the_best_before_wins() -> None:
    rows = [row(0, 10, 3.0), row(0, 20, None), row(1, 10, 1.0), row(1, 20, None)]
    found = segments([birth(0), birth(1), exploit(1, 0, 10, 1), mutation(2, 1, 10)], rows)
    assert winning_line(found, "min") == [1]
    assert winning_line(found, "max") == [0]


MEMBERS, CLOCK = 4, st.integers(0, 6).map(lambda generation: generation * 10)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Return the events and rows of a search with replays, vanished donors and members that do not wait."""
    births = [birth(member, lr=member) for member in range(draw(st.integers(0, MEMBERS)))]
    clocks = [0] * MEMBERS
    events: list[Row] = []
    for seq in range(draw(st.integers(0, 12))):
        member, donor = draw(st.integers(0, MEMBERS - 1)), draw(st.integers(0, MEMBERS - 1))
        clocks[member] = max(0, clocks[member] + draw(CLOCK) - draw(st.sampled_from([0, 0, 10])))
        if donor == member:
            events.append(mutation(seq, member, clocks[member], lr=seq))
        else:
            events.append(exploit(seq, member, clocks[member], donor, draw(CLOCK), lr=seq))
        for _ in range(draw(st.integers(0, 2))):
            state = f"{draw(st.integers(0, MEMBERS - 1))}@{draw(CLOCK)}"
            order = draw(st.sampled_from(events))
            source = draw(st.sampled_from(["memory", "checkpoint", "own"]))
            events.append(loaded(order["seq"], order["member"], order["samples"], state, source))
        events += draw(st.lists(st.sampled_from(events), max_size=1))
    deaths = [death(member, clocks[member] + draw(CLOCK)) for member in draw(st.sets(st.integers(0, MEMBERS - 1)))]
    at = st.tuples(st.integers(0, MEMBERS - 1), CLOCK, st.none() | st.floats(0, 9))
    return [*births, *events, *deaths], [row(member, samples, fit) for member, samples, fit in draw(st.lists(at))]


@given(histories(), st.sampled_from(["min", "max"]))
def test_every_clock_is_covered_and_every_parent_is_earlier(history: tuple[list[Row], list[Row]], mode: Mode) -> None:
    events, rows = history
    found = segments(events, rows)
    named = {one["member"] for one in [*events, *rows]} | {one["donor"] for one in events if "donor" in one}
    assert {one.member for one in found} >= named
    for member in named:
        life = [one for one in found if one.member == member]
        told = [one["samples"] for one in [*events, *rows] if one["member"] == member]
        assert life[0].start_samples == 0
        assert life[-1].end_samples >= max(told, default=0)
        for before, after in pairwise(life):
            assert before.end_samples == after.start_samples
        assert all(one.start_samples <= one.end_samples for one in life)
    for place, one in enumerate(found):
        assert (one.parent is None) == (one.parent_samples is None) == (one.source_seq is None)
        if one.parent is None or one.parent_samples is None:
            continue
        assert one.parent < place
        donor = found[one.parent]
        assert donor.start_samples < one.parent_samples or donor.parent is None or donor.member == one.member
        later = [other for other in range(one.parent + 1, place) if found[other].member == donor.member]
        assert one.parent_samples <= donor.end_samples or not later, "a later stretch of the donor was known"
    line = winning_line(found, mode)
    assert [found[place].parent for place in line] == [None, *line][: len(line)]


# --- the page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of a page: its elements, the title, and the embedded data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        self.texts.setdefault(attributes.get("id") or tag, data)

    @property
    def data(self) -> dict[str, Any]:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        found = json.loads(self.texts["data"], parse_constant=refuse)
        assert isinstance(found, dict)
        return found


def small_search() -> tuple[list[Row], list[Row]]:
    """Three members; 1 takes the weights of 0 at 10 and wins, 2 diverges."""
    events = [birth(member, **{LR: 10.0**-member, LATENT: 4, "code": "a"}) for member in range(3)]
    events += [exploit(7, 1, 10, 0, None, **{LR: 1.25, LATENT: 8}), mutation(7, 1, 10, **{LR: 1.25, LATENT: 8})]
    events += [loaded(7, 1, 10, "0@10"), death(2, 10, "diverged")]
    rows = [row(0, 10, 0.5), row(1, 10, 0.9), row(2, 10, float("nan")), row(0, 20, 0.45), row(1, 20, 0.4)]
    return events, rows


def test_the_page_carries_the_tree_as_json() -> None:
    events, rows = small_search()
    data = Page(lineage_page("small", events, rows, mode="min", metric="quality/mse")).data
    assert [(one["member"], one["parent"]) for one in data["segments"]] == [(0, None), (1, None), (2, None), (1, 0)]
    assert data["line"] == [{"segment": 0, "from": 0, "to": 10}, {"segment": 3, "from": 10, "to": 20}]
    assert data["counts"] == {"exploit": 1, "mutation": 1, "death": 1}
    last = data["segments"][3]
    assert last["history"] == [{"generation": 2, "samples": 20, "fitness": 0.4}]
    assert (last["exploit"]["donor"], last["loaded"]["source"], last["mutation"]["new"][LATENT]) == (0, "memory", 8)
    assert data["segments"][2]["history"][0]["fitness"] is None
    assert data["segments"][0]["exploit"] is None


def test_the_line_leads_to_the_best_even_if_that_was_earlier() -> None:
    events, rows = small_search()
    data = Page(lineage_page("small", events, rows, mode="min", metric="m", best=(0, 10))).data
    assert data["line"] == [{"segment": 0, "from": 0, "to": 10}]
    assert line_to(segments(events, rows), 1, 20) == [0, 3]
    assert line_to(segments(events, rows), 1, 21) == []


def test_a_picture_lies_with_the_segment_that_ends_there() -> None:
    events, rows = small_search()
    pictures = {(1, 10): b"before", (1, 20): b"after", (2, 0): b"at birth", (9, 10): b"nobody's"}
    data = Page(lineage_page("small", events, rows, mode="min", metric="m", pictures=pictures)).data
    found = [[base64.b64decode(one["png"]) for one in segment["pictures"]] for segment in data["segments"]]
    assert found == [[], [b"before"], [b"at birth"], [b"after"]]


@pytest.mark.parametrize("title", ["</script><script>alert(1)</script>", "<!--<script>", 'a "b" & \u2028 @@DATA@@ \\1'])
def test_words_of_the_user_cannot_leave_their_place(title: str) -> None:
    plain = Page(lineage_page("plain", *small_search(), mode="min", metric="m"))
    events, rows = small_search()
    events[0]["new"]["code"] = title
    page = Page(lineage_page(title, events, rows, mode="min", metric=title))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.data["title"] == page.data["metric"] == page.data["segments"][0]["values"]["code"] == title
    assert page.texts["title"] == title + " – lineage"


def test_nothing_is_loaded_from_anywhere() -> None:
    page = lineage_page("small", *small_search(), mode="min", metric="m", pictures={(0, 10): b"x"})
    assert set(re.findall(r"\w+://[^\"'`\s]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not {"link", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in Page(page).elements}
    assert not [one for _, one in Page(page).elements if "src" in one or "href" in one]
    assert "@import" not in page
    assert "url(" not in page
    policy = [one["content"] for _, one in Page(page).elements if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def in_browser(page: str, folder: Path) -> list[tuple[str, Mapping[str, str | None]]]:
    """Return the elements of a page after its script ran."""
    if CHROMIUM is None:
        pytest.skip("no chromium here to run the page's script")
    (folder / "lineage.html").write_text(page)
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--virtual-time-budget=2000", "--dump-dom", (folder / "lineage.html").as_uri()]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout).elements


def classes(elements: Sequence[tuple[str, Mapping[str, str | None]]], name: str) -> list[Mapping[str, str | None]]:
    return [one for _, one in elements if name in (one.get("class") or "").split()]


def test_a_browser_draws_a_bar_for_each_segment_an_arrow_for_each_exploit_and_a_lane_for_each_key(
    tmp_path: Path,
) -> None:
    events, rows = small_search()
    seen = in_browser(lineage_page("small", events, rows, mode="min", metric="quality/mse"), tmp_path)
    bars = classes(seen, "segment")
    assert [one["data-index"] for one in bars] == ["0", "1", "2", "3"]
    assert [one["tabindex"] for one in bars].count("0") == 1
    assert bars[3]["aria-label"] == "Member 1, 10 to 20 samples, quality/mse 0.4"
    assert [one["data-to"] for one in classes(seen, "arrow") if "data-to" in one] == ["3"]
    assert len(classes(seen, "lane")) == 4, "the fitness and three keys"
    assert len(classes(seen, "track")) == 4 * 3


@pytest.mark.parametrize("born", [0, 2])
def test_a_browser_draws_a_search_that_has_not_measured_anything(tmp_path: Path, born: int) -> None:
    seen = in_browser(
        lineage_page("new", [birth(member) for member in range(born)], [], mode="max", metric="m"), tmp_path
    )
    assert len(classes(seen, "segment")) == born
    empty = next(one for _, one in seen if one.get("id") == "empty")
    assert ("hidden" in empty) == (born > 0)
