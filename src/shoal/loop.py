"""The training loop: a generator that does not know who runs it."""

from collections.abc import Callable, Iterator

import torch

from shoal import warm_start
from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.data import DataSet, check_state
from shoal.data.balance import quotas_of
from shoal.data.mixing import mixing_caution
from shoal.errors import ConfigError, DataError
from shoal.quality.held_out import held_out_split, num_measured
from shoal.run import Run, refuse_changes
from shoal.session import Session, Tick
from shoal.state import build_objective
from shoal.transplant import check_change
from shoal.world import World

__all__ = ["Tick", "check", "check_resume", "train"]


def train(
    run: Run,
    world: World,
    *,
    resume: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    quarantine: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[Tick]:
    """Train, yielding on every rank at the same clock values.

    Args:
        run: what to learn, and from which data set.
        world: the workers that train together; every one of them iterates.
        resume: where to go on. A resumed run equals one that never stopped, bit for bit at the same world size.
        should_stop: asked at every step on every rank. When any says yes, the step is finished and a last tick comes
            at that very sample, with a checkpoint.
        quarantine: whether to go on without rows that turn out to be damaged; see ``Session``.
        on_progress: called while it measures, between two steps; see ``Session``.

    Raises:
        ConfigError: the configuration does not fit the data set or the number of workers.
        DataError: the data set is damaged, or is not the one that the checkpoint was trained on.
        RunError: the loss is no longer finite.
    """
    config = run.config
    start = resume.samples if resume else 0

    # The first worker chooses for all: another run may be training still, and shared storage shows the others less.
    source = world.first_says(lambda: warm_start.announced(run)) if resume is None and config.init_from else None

    def refuse() -> None:
        data = DataSet.open(run.data)
        check(config, data, world.size)
        if resume is not None:
            check_resume(resume, config, data)

    world.together(refuse)
    with Session(
        config.at(start - config.batch),  # what the last step before this clock was taken with
        run.data,
        world,
        tensors=resume.tensors if resume else None,
        samples=start,
        source=source,
        stream=resume.stream if resume else None,
        quarantine=quarantine,
        on_progress=on_progress,
    ) as session:
        while session.samples < config.duration_samples:
            session.adapt(config.at(session.samples))
            begun_at = (-(-at // config.batch) * config.batch for at in config.changes)  # the first step with a change
            ahead = [at for at in begun_at if session.samples < at < config.duration_samples]
            until = min(ahead, default=config.duration_samples)
            stopped = yield from session.advance(until, should_stop=should_stop, ends=not ahead)
            if stopped:
                return


def check(config: RunConfig, data: DataSet, workers: int) -> list[str]:
    """Refuse what cannot run, before any worker starts; return what will run but badly, for the user to read.

    Raises:
        ConfigError: too small or too large a batch, networks that cannot make such images, a balance of classes that
            are not there, or more images to measure than there are.
        DataError: no such split, or images without the labels that the objective or the balance needs.
    """
    if config.batch < workers:
        raise ConfigError(
            f"batch {config.batch} cannot feed {workers} workers (one image each at least); use batch >= {workers},"
            f" or at most {config.batch} workers"
        )
    rows = data.num_rows(config.data.split)
    with torch.device("meta"):  # shapes only: costs no memory
        objective = build_objective(config, data.shape, data.num_classes)
    if config.batch > rows:
        raise ConfigError(
            f"batch {config.batch} is more than the {rows} images of split '{config.data.split}'; use batch <= {rows}"
        )
    if objective.needs_labels:
        refuse_unlabelled(data, config.data.split)
    quotas_of(data, config.data.split, config.data.balance)
    if config.report.quality_every_samples:
        num_measured(config, data)
    elif config.checkpoint.keep_best:
        raise ConfigError(
            f"checkpoint.keep_best={config.checkpoint.keep_best} is not measured while report.quality_every_samples=0;"
            " use report.quality_every_samples > 0"
        )
    data.num_rows(held_out_split(config, data))
    for at in sorted(config.changes):
        try:
            check_change(config.at(at - 1), config.at(at), data.shape, data.num_classes)
        except ConfigError as error:
            raise ConfigError(f"changes at sample {at}: {error}") from None
    cautions = objective.cautions(config.batch)
    mixing = mixing_caution(data, config.data.split, config.data.window_blocks)
    return cautions if mixing is None else [*cautions, mixing]


def refuse_unlabelled(data: DataSet, split: str) -> None:
    """Refuse a split in which some image has no label.

    Raises:
        DataError: with their number.
    """
    labels = data.labels(split)
    without = data.num_rows(split) if labels is None else int((labels < 0).sum())
    if without:
        raise DataError(
            f"{without:,} of the {data.num_rows(split):,} images of split '{split}' in {data.location} have no label,"
            " and objective.conditional needs one for each; import them with labels, or set objective.conditional=false"
        )


def check_resume(resume: Checkpoint, config: RunConfig, data: DataSet) -> None:
    """Refuse to go on from a checkpoint with another data set, or with a key changed that may not change.

    Raises:
        DataError: the data set has another fingerprint.
        RunError: names the key.
    """
    refuse_changes(build_config(resume.config), config.at(resume.samples - config.batch))
    check_state(resume.stream, data, config.data.balance)
