"""DDP over real hosts: nothing happens to it."""

from collections.abc import Callable

import pytest
from tests.hosts.training import DURATION, STEPS, Undisturbed

hosts = pytest.mark.hosts


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("autoencoder", 2),
        pytest.param("autoencoder", 3, marks=hosts),
        pytest.param("gan", 2, marks=hosts),
        pytest.param("gan", 3, marks=hosts),
    ],
)
def test_every_gradient_goes_over_the_wire(kind: str, workers: int, undisturbed: Callable[..., Undisturbed]) -> None:
    run = undisturbed(kind, str(workers))
    assert (run.ended()["how"], run.ended()["samples"]) == ("finished", DURATION)
    assert run.rows()[-1]["samples"] == DURATION
    assert len(run.starts()) == 1
    assert run.failures() == []
    tensors = run.newest().tensors()
    weights = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("nets/"))
    # A rank of n sends 2 (n - 1) / n of the gradients at least, whatever the algorithm.
    assert weights > 0
    talked = [sent for sent in run.sent.values() if sent > STEPS * weights * 2 * (workers - 1) / workers]
    assert len(talked) == workers
