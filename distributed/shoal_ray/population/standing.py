"""Where each member stands, rebuilt from the journals after any death."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal_ray.population.journal import Row, events
from shoal_ray.population.orders import Become

LARGEST_GAP = 1e9
"""In standard errors. Beyond it there was no error to speak of, and JSON knows no infinity."""


@dataclass
class Standing:
    """What is known of one member.

    Attributes:
        member: its number.
        values: of the searched keys, that it trains with now.
        root: the first member that its weights descend from.
        rows: what each generation came to, in order.
        orders: every exploit that it was told of.
        dead: why it trains no more.
        donor: whose weights it took last.
        former_root: before its last exploit.
        taken_root: of the weights of its last exploit.
        over: why the search ends for it.
        incarnation: of its process; an older one is not heard.
        groups: every placement group that was announced for its workers.
        live: what it said last of its progress: samples, samples_per_sec, state.
    """

    member: int
    values: Mapping[str, Any]
    root: int
    rows: list[Row] = field(default_factory=list)
    orders: list[Become] = field(default_factory=list)
    dead: str | None = None
    donor: int | None = None
    live: dict[str, Any] = field(default_factory=dict)
    former_root: int = -1
    taken_root: int = -1
    incarnation: str = ""
    groups: list[str] = field(default_factory=list)
    over: str | None = None

    @property
    def row(self) -> Row | None:
        """The newest generation's row."""
        return self.rows[-1] if self.rows else None

    @property
    def samples(self) -> int:
        """The clock that it told of last."""
        if "samples" in self.live:
            return int(self.live["samples"])
        return int(self.rows[-1]["samples"]) if self.rows else 0

    @property
    def generation(self) -> int:
        """Generations behind it."""
        return int(self.rows[-1]["generation"]) if self.rows else 0

    def take(self, row: Row) -> None:
        """Note an exploit."""
        self.orders.append(
            Become(row["seq"], row["samples"], row["donor"], row["donor_samples"], row["new"], row["time"])
        )
        self.values, self.donor = row["new"], row["donor"]
        self.root, self.former_root, self.taken_root = row["root"], self.root, row["root"]

    def learn(self, loaded: Row) -> None:
        """Note which weights it really took; its own, where the donor's were lost."""
        if self.orders and loaded["seq"] == self.orders[-1].seq:  # an order may be carried out again after a death
            self.root = self.former_root if loaded["source"] == "own" else self.taken_root


def standings(lineage: Sequence[Row], population: Sequence[Row]) -> dict[int, Standing]:
    """Return the standing of every member that was born, from the rows of the two journals."""
    found: dict[int, Standing] = {}
    for row in events(lineage, "birth"):
        found[row["member"]] = Standing(row["member"], row["new"], root=row["member"])
    for row in lineage:
        match row["event"]:
            case "exploit":
                found[row["member"]].take(row)
            case "loaded":
                found[row["member"]].learn(row)
            case "death":
                found[row["member"]].dead = row["reason"]
            case "start":
                found[row["member"]].dead = None
                found[row["member"]].incarnation = row["incarnation"]
            case "workers":
                found[row["member"]].groups.append(row["group"])
    for row in population:
        found[row["member"]].rows.append(row)
    return found


def exploit_rows(
    seq: int, taker: Standing, giver: Standing, values: Mapping[str, Any], how: Mapping[str, str], gap: float | None
) -> tuple[Row, Row]:
    """Return what the journal says of an exploit: the exploit, and the mutation of the donor's values.

    Both are told by the newest rows: a donor that has taken other weights since then still gives what it had.
    """
    assert taker.row is not None
    assert giver.row is not None
    common = {"seq": seq, "member": taker.member, "samples": taker.row["samples"]}
    given = giver.row["values"]
    changed = {key: value for key, value in values.items() if value != given.get(key)}
    exploit = {
        "event": "exploit",
        **common,
        "donor": giver.member,
        "donor_samples": giver.row["samples"],
        "state": f"{giver.member}@{giver.row['samples']}",
        "old": dict(taker.values),
        "new": dict(values),
        "before": taker.row["fitness"],
        "after": giver.row["fitness"],
        "root": giver.row["root"],
        "gap": gap if gap is None or abs(gap) < LARGEST_GAP else None,
    }
    mutation = {
        "event": "mutation",
        **common,
        "old": {key: given.get(key) for key in changed},
        "new": changed,
        "how": {key: how.get(key, "") for key in changed},
    }
    return exploit, mutation
