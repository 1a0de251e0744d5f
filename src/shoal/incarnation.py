"""A start of a run's workers: they claim the run, and all go on from the newest checkpoint that counts and verifies."""

from dataclasses import dataclass, replace

from shoal import remote_checkpoint
from shoal.checkpoint import STATE, TENSORS, Checkpoint, directories, prune_older
from shoal.checkpoint_names import Name, counts
from shoal.ownership import Hold, claims_on
from shoal.remote_checkpoint import Found
from shoal.run import Run
from shoal.run_files import CHECKPOINTS, ENDED, HISTORY, STARTS, read_ended, read_rows
from shoal.storage.location import Location
from shoal.storage_trouble import storage_errors
from shoal.world import World


@dataclass(frozen=True)
class Incarnation:
    """What the workers agree on when they start.

    Attributes:
        checkpoint: that they go on from, as this worker finds it; None: from nothing.
        hold: the first worker's, on the run's directory or copy; None on the others, and where there is nothing to do.
        hold_at_home: the same at the run's URI, if it has one.
        over: whether the run has ended: nothing is to be trained or written.
    """

    checkpoint: Checkpoint | None = None
    hold: Hold | None = None
    hold_at_home: Hold | None = None
    over: bool = False

    @property
    def samples(self) -> int:
        """The clock that they go on from."""
        return self.checkpoint.samples if self.checkpoint else 0


def begin(run: Run, world: World) -> Incarnation:
    """Start on a run; every worker calls this.

    The first worker chooses for all: shared storage may show the others an older listing. Of a run at a URI, each of
    the others fetches that very checkpoint, unless it is on the same node.

    Raises:
        CheckpointError: there are checkpoints, but none can be used.
        FencedError: another process has claimed the run in the same moment.
        StorageError: the run's storage refuses.
    """
    mine: list[Incarnation] = []

    def choose() -> tuple[Checkpoint | None, bytes, int | None]:
        incarnation = _finished(run) or _claimed(run)
        mine.append(incarnation)
        found = incarnation.checkpoint
        epoch = incarnation.hold.epoch if incarnation.hold else None
        return found, (found.path / STATE).read_bytes() if found else b"", epoch

    checkpoint, state, epoch = world.first_says(choose)
    if checkpoint is not None and not world.first:  # the first worker's path may be of another machine
        checkpoint = replace(checkpoint, path=run.checkpoints / checkpoint.path.name)
    if run.mirror is not None and checkpoint is not None and epoch is not None:
        name = checkpoint.path.name
        world.together(lambda: None if world.first else _follow(run, name, state, epoch))
    return mine[0] if mine else Incarnation(checkpoint, over=epoch is None)


def _follow(run: Run, name: str, state: bytes, epoch: int) -> None:
    assert run.mirror is not None
    home = run.mirror.home / CHECKPOINTS / name
    with run.mirror.alone():
        remote_checkpoint.fetch(home, run.checkpoints / name, (home / TENSORS).size(), state)
        # Where this start's first worker writes, or a later one's, it prunes; elsewhere nobody else does. Paths do not
        # tell: they may be the same on two nodes.
        if all(claim.epoch < epoch for claim in claims_on(Location.parse(run.checkpoints))):
            prune_older(run.checkpoints, name)


def _finished(run: Run) -> Incarnation | None:
    """Return the incarnation of a run in which nothing is left to do, and all is where it belongs."""
    ended = read_ended(run.place)
    if ended.get("how") != "finished" or ended.get("samples", 0) < run.config.duration_samples:
        return None
    found = run.find_checkpoint()
    if not found.at_home or found.checkpoint is None or found.checkpoint.samples < run.config.duration_samples:
        return None
    return Incarnation(found.checkpoint, over=True)


def _claimed(run: Run) -> Incarnation:
    home = None
    with storage_errors(run.path):
        if run.mirror is not None:
            home = Hold.take(run.mirror.home / CHECKPOINTS, beside=directories(run.checkpoints))
            hold = home.in_copy(Location.parse(run.checkpoints))
            (run.mirror.home / ENDED).delete()
        else:
            hold = Hold.take(Location.parse(run.checkpoints))
        (run.path / ENDED).unlink(missing_ok=True)
        found = run.find_checkpoint()
        samples = found.checkpoint.samples if found.checkpoint else 0
        if home is not None:
            _bring_home(run, found, home)
        home, hold = home and home.going_on_from(samples), hold.going_on_from(samples)
    return Incarnation(found.checkpoint, hold, home)


def _bring_home(run: Run, found: Found, hold: Hold) -> None:
    """Make the copy and the URI of a run agree on where it goes on; ``hold`` is on the run there."""
    assert run.mirror is not None
    if found.at_home:
        samples = found.checkpoint.samples if found.checkpoint else 0
        run.mirror.pull(HISTORY, keep_longer=_leads_to(run, samples, hold))
    elif found.checkpoint is not None:  # after the copy's rows, or it could be found without them
        hold.refuse_lost()
        run.mirror.push(HISTORY)
        remote_checkpoint.publish(found.checkpoint.path, run.mirror.home / CHECKPOINTS / found.checkpoint.path.name)


def _leads_to(run: Run, samples: int, hold: Hold) -> bool:
    """Return whether the rows of the copy are those of the steps that led to a clock, and not of lost ones.

    They are if a checkpoint at that clock would count, had it been written by whoever wrote the copy last.
    """
    epoch = next((row.get("epoch") for row in reversed(read_rows(run.path / STARTS))), None)
    return isinstance(epoch, int) and counts(Name(samples, epoch), claims_on(hold.folder))
