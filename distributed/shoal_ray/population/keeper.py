"""Checkpoints of a member and of the best so far, written in the background while training goes on."""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from shoal import checkpoint
from shoal.checkpoint import Checkpoint
from shoal.execute import storage_errors
from shoal.files import temporary_beside, write_text
from shoal.run import CONFIG, ENVIRONMENT
from shoal_ray.population.directory import KEPT_GENERATIONS, SearchDirectory

KEPT_BEST = 2


class Keeper:
    """Writes one state at a time; the next one waits until the last is on disk.

    Args:
        directory: of the search.
        number: of the member.
    """

    def __init__(self, directory: SearchDirectory, number: int) -> None:
        self._directory = directory
        self._number, self._member = number, directory.member(number)
        self._writer = ThreadPoolExecutor(1, "shoal-keeper")
        self._last: Future[None] | None = None

    def keep(
        self,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        *,
        best: int | None,
        row: Mapping[str, Any] | None,
    ) -> None:
        """Start to write a state, which nobody changes meanwhile; ``best`` numbers it if it is the best so far.

        Raises:
            StorageError: the last one could not be written.
        """
        self.wait()
        self._last = self._writer.submit(self._write, dict(tensors), dict(facts), best, row)

    def wait(self) -> None:
        """Wait until all is on disk.

        Raises:
            StorageError: it could not be written.
        """
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Wait, and end."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _write(
        self, tensors: dict[str, Tensor], facts: dict[str, Any], best: int | None, row: Mapping[str, Any] | None
    ) -> None:
        with storage_errors(self._directory.path):
            if best is not None:
                # First: a member that finds no checkpoint of a generation trains it again, and tells of it again.
                self._write_best(tensors, facts, best, row or {})
            folder = self._member / "checkpoints"
            checkpoint.write(folder / checkpoint.directory_name(facts["samples"]), tensors, **facts)
            checkpoint.prune(folder, KEPT_GENERATIONS, now=facts["samples"])

    def _write_best(
        self, tensors: dict[str, Tensor], facts: dict[str, Any], number: int, row: Mapping[str, Any]
    ) -> None:
        """Put a state into ``best/``, where a newer best has a higher number, and the newest counts.

        Two members may do so at once: each leaves alone what the other has not finished, and says of what is there in
        the end what it is, whoever wrote it.
        """
        folder = self._directory.best / "checkpoints"
        notes = {**facts.get("notes", {}), "member": self._number, "row": dict(row)}
        checkpoint.write(folder / checkpoint.directory_name(number), tensors, **{**facts, "notes": notes})
        described: Checkpoint | None = None
        while (newest := checkpoint.newest(folder)) != described:
            assert newest is not None
            self._describe(newest)
            described = newest
        for old in checkpoint.saved(folder)[KEPT_BEST:]:
            if int(old.name) < number:
                with suppress(FileNotFoundError):  # the other has deleted it
                    shutil.rmtree(old.replace(_aside(old)), ignore_errors=True)

    def _describe(self, newest: Checkpoint) -> None:
        """Write what ``best/`` says of its newest checkpoint."""
        best, notes = self._directory.best, newest.notes
        write_text(best / CONFIG, yaml.safe_dump(newest.config, sort_keys=False))
        write_text(best / ENVIRONMENT, (self._directory.member(notes["member"]) / ENVIRONMENT).read_text())
        write_text(best / "origin.json", json.dumps(notes["row"], indent=1))


def _aside(path: Path) -> Path:
    return temporary_beside(path)
