"""What a search's directory says of itself."""

import json
from collections.abc import Callable

import pytest

from shoal.errors import RunError
from shoal_ray.population.directory import SearchDirectory

MakeSearch = Callable[..., SearchDirectory]


def test_a_search_that_goes_on_says_where_and_with_what(make_search: MakeSearch) -> None:
    directory = make_search()
    path = directory.path / "environment.json"
    before = json.loads(path.read_text())
    directory.note({"workers": 3})
    after = json.loads(path.read_text())
    assert (before["workers"], after["workers"]) == (1, 3)
    assert before["data"] == after["data"] == str(directory.data)
    assert SearchDirectory.open(directory.path) == directory


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_a_search_that_does_not_say_where_its_data_is_is_refused(make_search: MakeSearch, text: str) -> None:
    path = make_search().path
    (path / "environment.json").write_text(text)
    with pytest.raises(
        RunError, match=r"environment\.json does not say where the data is; start anew with another --out"
    ):
        SearchDirectory.open(path)
