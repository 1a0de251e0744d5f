"""What runs on the cluster: ``python -m shoal_ray.submission.inside check|run PLACE WORDS…``.

The command line in this very process, and after it a last line for whoever asks how it ended.
"""

import signal
import sys
import time
import traceback
from types import FrameType
from typing import NoReturn

from shoal_ray.submission import environment
from shoal_ray.submission.entry import CHECK
from shoal_ray.submission.outcome import Outcome

SIGNALLED = 128
"""A shell's exit code of what a signal ended is this and the signal's number."""


def main() -> NoReturn:
    """Carry out the words, say how they ended, and leave with their exit code."""
    signal.signal(signal.SIGTERM, _leave)  # while torch is imported; then the command listens itself
    environment.load()
    mode, place, *words = sys.argv[1:]
    began = time.time()
    code, why = _carry_out(words)
    samples = None
    how = "finished" if code == 0 else "stopped" if code > SIGNALLED else "failed"
    if mode != CHECK:
        samples, why = _ended(place, began, why)
    print(Outcome(how, code, samples, why).line(), flush=True)
    sys.exit(code)


def _carry_out(words: list[str]) -> tuple[int, str | None]:
    """Return the exit code of the command line, and the reason where it is the user's to mend."""
    try:
        from shoal.errors import USER_ERROR, ShoalError
        from shoal_ray import cli

        sys.argv = ["shoal", *words]
        try:
            cli.run()
        except ShoalError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return USER_ERROR, str(error)
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else int(end.code is not None)), None
    except BaseException as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return 0, None


def _ended(place: str, began: float, why: str | None) -> tuple[int | None, str | None]:
    """Return the sample at which the run says that it ended, and why; not what an earlier job left there."""
    try:
        from shoal.run_files import read_ended
        from shoal_ray.cli.paths import placed

        said = read_ended(placed(place))
        if said and said["time"] >= began:
            return said["samples"], why or said["why"] or None
    except Exception:  # what came of the job is said in any case
        traceback.print_exc()
    return None, why


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(SIGNALLED + signum)


if __name__ == "__main__":
    main()
