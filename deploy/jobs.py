"""A running cluster from outside, through its job server: submit a run, follow it, give it orders.

Only the server's HTTP port and its token are needed. Orders travel as small jobs that run
``python -m deploy.control`` in the environment of the run's own job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from buffer.errors import ConfigError, SsdkdError
from deploy.auth import given_token

PYTHON = "python"
ANSWER_SECONDS = 10.0
REQUEST_SECONDS = 60.0
ORDER_SECONDS = 90.0
"""For the job of an order to begin, and to wait for the pipeline's answer."""
POLL_SECONDS = 0.5
STOP_SECONDS = "60"
"""A job that is told to stop may take so long to save its student; Ray would kill it after 3."""
RUN = "ssdkd_run"
"""The key of a job's metadata under which its run's name is."""
ORDER = "ssdkd_order"
"""The same of a job that brings an order to a run."""
FORGET_SECONDS = 10.0
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")

Answer = TypeVar("Answer")


class Job(NamedTuple):
    """A job that is the pipeline of a run."""

    id: str
    status: str
    message: str
    environment: dict[str, Any]

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more."""
        return self.status in ENDED


class JobServer:
    """The job server of a cluster.

    Args:
        address: ``http://HOST:8265``.

    Raises:
        ConfigError: nothing answers there, what answers is not Ray, it asks for a token that we do
            not have, or its version differs.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._check(given_token())
        self._client = _client(self._address)

    def submit(
        self, name: str, arguments: Sequence[str], *, files: Path | None = None
    ) -> tuple[str, bool]:
        """Submits the pipeline of a run, unless it runs already.

        Args:
            name: of the run.
            arguments: of ``python -m deploy.pipeline``.
            files: a folder that the job finds as its working folder.

        Returns:
            The submission id, and whether it is a new one.
        """
        entrypoint = shlex.join([PYTHON, "-m", "deploy.pipeline", *arguments])
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS}}
        if files is not None:
            environment["working_dir"] = str(files)
        for number in range(1000):
            identity = f"ssdkd-{name}-{number}"
            present = self._job(identity)
            if present is not None and present.ended:
                continue
            if present is None:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=identity,
                        metadata={RUN: name},
                        runtime_env=environment,
                    )
                except (RuntimeError, OSError) as error:
                    if self._job(identity) is None:
                        raise SsdkdError(f"the job was not accepted: {error}") from error
                    return identity, False
            return identity, present is None
        raise SsdkdError(f"run.name ({name}): a thousand jobs had this name; use another")

    def find(self, name: str) -> Job:
        """The newest job of a run.

        Raises:
            ConfigError: there is none.
        """
        return self._newest(name, self._asked(self._client.list_jobs))

    def _newest(self, name: str, jobs: list[Any]) -> Job:
        found = [
            (job.start_time or 0, job.submission_id)
            for job in jobs
            if (job.metadata or {}).get(RUN) == name and job.submission_id is not None
        ]
        if not found:
            raise ConfigError(
                f"run ({name}): no job of this name at {self._address}; it may have been submitted "
                "elsewhere, or the cluster was started again since"
            )
        return self.status(max(found)[1])

    def logs(self, identity: str, *, follow: bool = False) -> Iterator[str]:
        """What a job has printed; if it is followed, part by part until it ends."""
        if not follow:
            yield self._asked(partial(self._client.get_job_logs, identity))
            return
        parts = self._client.tail_job_logs(identity)
        with asyncio.Runner() as loop:
            while (part := loop.run(self._next(parts, identity))) is not None:
                yield part

    async def _next(self, parts: AsyncIterator[str], identity: str) -> str | None:
        """What a job prints next; ``None`` if it has ended."""
        from aiohttp import ClientError

        coming = asyncio.ensure_future(anext(parts, None))
        # A server that is cut off does not end the stream: after a while in silence it is asked.
        while not (await asyncio.wait([coming], timeout=REQUEST_SECONDS))[0]:
            self.status(identity)
        try:
            return coming.result()
        except (ClientError, RuntimeError, OSError) as error:
            raise self._failed(error) from error

    def status(self, identity: str) -> Job:
        """How a job is."""
        job = self._job(identity)
        if job is None:
            raise ConfigError(f"job ({identity}): there is none at {self._address}")
        return job

    def order(self, name: str, *words: str) -> dict[str, Any]:
        """Has a running pipeline do something, or say what it does; its answer.

        Raises:
            ConfigError: the run has no job, or it has ended.
            SsdkdError: the pipeline refuses, or has not answered in time.
        """
        jobs = self._asked(self._client.list_jobs)
        self._forget_orders(jobs)
        job = self._newest(name, jobs)
        if job.ended:
            raise ConfigError(
                f"run ({name}): its job has ended ({job.status}), nobody takes orders"
            )
        entrypoint = shlex.join([PYTHON, "-m", "deploy.control", name, *words])
        submit = partial(self._client.submit_job, entrypoint=entrypoint, metadata={ORDER: name})
        identity = self._asked(partial(submit, runtime_env=job.environment))
        deadline = time.monotonic() + ORDER_SECONDS
        while not self.status(identity).ended:
            if time.monotonic() > deadline:
                self._asked(partial(self._client.stop_job, identity))
                raise SsdkdError(f"run ({name}): no answer within {ORDER_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        return _answer(self._asked(partial(self._client.get_job_logs, identity)))

    def _forget_orders(self, jobs: list[Any]) -> None:
        """Deletes the jobs of earlier orders.

        Not at once: Ray looks after a job a little longer, and would list it again, as failed.
        """
        latest = 1000 * (time.time() - FORGET_SECONDS)
        for job in jobs:
            if ORDER in (job.metadata or {}) and job.end_time and job.end_time < latest:
                with suppress(SsdkdError):  # nothing but a line too many in the list of jobs
                    self._asked(partial(self._client.delete_job, job.submission_id))

    def stop(self, name: str) -> None:
        """Ends the job of a run: its pipeline is told to, and killed a minute later."""
        self._asked(partial(self._client.stop_job, self.find(name).id))

    def _asked(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except (RuntimeError, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SsdkdError:
        return SsdkdError(f"the job server at {self._address}: {' '.join(str(error).split())}")

    def _job(self, identity: str) -> Job | None:
        try:
            info = self._asked(partial(self._client.get_job_info, identity))
        except SsdkdError as error:
            if "status code 404" in str(error):
                return None
            raise
        # Behind the comma is the log, again.
        message = (info.message or "").partition(", last available logs")[0]
        return Job(identity, info.status.value, message, info.runtime_env or {})

    def _check(self, token: str | None) -> None:
        """Asks for the version, with patience that the client of Ray does not have."""
        if not self._address.startswith(("http://", "https://")):
            raise ConfigError(_not_ray(self._address, "it does not begin with http:// or https://"))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            request = urllib.request.Request(self._address + "/api/version", headers=headers)
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                theirs = str(json.loads(answer.read())["ray_version"])
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConfigError(_token_message(self._address, token)) from error
            raise ConfigError(_not_ray(self._address, f"it answers {error.code}")) from error
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise ConfigError(_not_ray(self._address, str(error))) from error
        from ray import __version__ as ours

        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise ConfigError(
                f"--address ({self._address}): the cluster runs Ray {theirs}, this is {ours}: jobs "
                "would fail in ways hard to understand; install the same version"
            )


def staged(config: Path) -> tuple[tempfile.TemporaryDirectory[str], str]:
    """A folder with a copy of a configuration only, and the name that the copy has in it."""
    folder = tempfile.TemporaryDirectory(prefix="ssdkd-submit-")
    (Path(folder.name) / "run.yaml").write_bytes(config.read_bytes())
    return folder, "run.yaml"


def _client(address: str) -> Any:
    """Ray's client, but one that does not wait for ever."""
    from ray.job_submission import JobSubmissionClient

    # It says that a followed log has come to its end, among what the job has printed.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            limits = (ANSWER_SECONDS, REQUEST_SECONDS)
            return super()._do_request(method, endpoint, timeout=limits, **options)

    return Client(address)


def _token_message(address: str, token: str | None) -> str:
    given = "the one given is not valid there" if token else "none is given"
    return (
        f"--address ({address}): the cluster asks for a token, and {given}; set RAY_AUTH_TOKEN, or "
        "RAY_AUTH_TOKEN_PATH to a file with it (on the head: ray get-auth-token)"
    )


def _not_ray(address: str, reason: str) -> str:
    return (
        f"--address ({address}): no Ray job server answers there ({reason}); it is the dashboard's "
        "address, usually http://HEAD:8265"
    )


def _answer(printed: str) -> dict[str, Any]:
    """The last line of JSON in what an order has printed."""
    for line in reversed(printed.strip().splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict):
            if "error" in answer:
                raise SsdkdError(str(answer["error"]))
            return answer
    last = (printed.strip().splitlines() or ["nothing was printed"])[-1]
    raise SsdkdError(f"the order was not carried out: {last}")
