"""What the services of a run tell each other, beside the samples: one shard's notices."""

from __future__ import annotations

from buffer.batches import check_uint32
from buffer.connection import Connection
from buffer.keys import Keys
from buffer.params import SamplingParams, params_of
from buffer.progress import StudentProgress, read_progress
from buffer.scripts import Scripts
from buffer.snapshots import pack, unpack
from buffer.version import Version


class Notices:
    """Parameters, attempts, progress and student of a run, as one shard has them.

    Args:
        connection: to the shard's server.
        keys: of the shard.
        scripts: of the shard.
    """

    def __init__(self, connection: Connection, keys: Keys, scripts: Scripts) -> None:
        self._connection = connection
        self._keys = keys
        self._scripts = scripts

    def params(self) -> SamplingParams:
        """See :meth:`buffer.interface.Replay.params`."""
        fields = self._connection.fields(self._keys.params)
        if not fields:
            self._scripts.init()
            fields = self._connection.fields(self._keys.params)
        return params_of(fields)

    def set_params(self, params: SamplingParams) -> bool:
        """See :meth:`buffer.interface.Replay.set_params`."""
        check_uint32(**params.version._asdict())
        return self._scripts.set_params(params)

    def begin_attempt(self, role: str, *, above: int = 0) -> int:
        """See :meth:`buffer.interface.Replay.begin_attempt`; above what other shards handed out."""
        return self._scripts.begin_attempt(role, above)

    def publish_progress(self, progress: StudentProgress) -> None:
        """See :meth:`buffer.interface.Replay.publish_progress`."""
        check_uint32(**progress.version._asdict())
        value = progress.model_dump_json().encode()
        self._connection.publish(self._keys.progress, value, progress.version)

    def progress(self) -> StudentProgress | None:
        """See :meth:`buffer.interface.Replay.progress`."""
        value = self._connection.published(self._keys.progress)
        return None if value is None else read_progress(value)

    def publish_student(self, weights: bytes, *, version: Version) -> None:
        """See :meth:`buffer.interface.Replay.publish_student`."""
        check_uint32(**version._asdict())
        self._connection.publish(self._keys.student, pack(weights, version), version)

    def student_version(self) -> Version:
        """The version of the student snapshot here."""
        return self._connection.version(self._keys.student)

    def fetch_student(self, *, newer_than: Version) -> tuple[Version, bytes] | None:
        """See :meth:`buffer.interface.Replay.fetch_student`."""
        value = self._connection.published(self._keys.student, newer_than=newer_than)
        return None if value is None else unpack(value)
