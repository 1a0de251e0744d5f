"""TensorBoard's event file, written in the thread that asks for it, on storage that may refuse it for a while.

TensorBoard's own writer hands its events to a thread, which ends at the first error, with a traceback on the screen.
"""

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from shoal.growing_file import GrowingFile

_numbers = count()


class EventFile:
    """A new event file in a folder, with the methods that torch's `FileWriter` needs of its writer.

    Events that could not be written wait in memory for the next `flush`, which raises an `OSError` where it is refused.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        self._file = GrowingFile(path, durable=False)
        self._records = RecordWriter(self._file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        return self._folder

    def add_event(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _FileWriter(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = EventFile(folder)  # instead of the base class's own


class PatientSummaryWriter(SummaryWriter):
    """torch's `SummaryWriter` on an `EventFile`."""

    def _get_file_writer(self) -> FileWriter:
        writer: FileWriter | None = self.file_writer
        if writer is None:
            writer = _FileWriter(self.log_dir)
            self.file_writer, self.all_writers = writer, {self.log_dir: writer}  # type: ignore[assignment]  # says None
            if self.purge_step is not None:
                writer.add_event(Event(step=self.purge_step, file_version="brain.Event:2"))
                start = SessionLog(status=SessionLog.START)
                writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return writer
