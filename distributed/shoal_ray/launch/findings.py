"""What a look at a cluster to be launched finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        where: a line of the file, as ``cluster.yaml:12``, or a machine's address.
        what: the thing, in a word or two.
        found: what it is.
        good: whether a cluster can be started so.
        remedy: what to do where it is not.
    """

    where: str
    what: str
    found: str
    good: bool = True
    remedy: str = ""
