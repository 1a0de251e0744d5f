"""The run in this very process, alone or under torchrun; no Ray."""

from collections.abc import Callable

from shoal.execute import Outcome, execute
from shoal.loop import Tick
from shoal.run import Run
from shoal.worker_log import WorkerLog
from shoal.world import World
from shoal_ray.stop import StopSignals
from shoal_ray.tensorboard import TensorBoardSink


def train_here(
    run: Run,
    world: World,
    signals: StopSignals,
    on_tick: Callable[[Tick], None],
    tell: Callable[[str], None],
    *,
    quarantine: bool = False,
) -> Outcome:
    """Train in this process, which is one worker of ``world``; returns when done or asked to stop.

    On the first worker, ``tell`` shows the user a line.
    """
    return execute(
        run,
        world,
        should_stop=signals.asked.is_set,
        quarantine=quarantine,
        sinks=lambda samples: [TensorBoardSink(run, samples), WorkerLog(run, samples)],
        on_tick=on_tick,
        on_trouble=tell,
    )
