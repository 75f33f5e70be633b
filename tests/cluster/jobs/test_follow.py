"""Following a job: lost answers change nothing, lost jobs are named, and each line of a log is printed once."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from ray.job_submission import JobDetails

from dray.cluster.jobs import follow as module
from dray.cluster.jobs.client import JobClient, job_client
from dray.cluster.jobs.follow import end_of, follow
from dray.shards.errors import ClusterError, UnknownJobError

Details = dict[str, object]
LOG = "".join(f"line {number}\n" for number in range(30))


def details(status: str, code: int | None = None, message: str = "") -> Details:
    return {
        "type": "SUBMISSION",
        "submission_id": "j-1",
        "entrypoint": "x",
        "status": status,
        "driver_exit_code": code,
        "message": message,
    }


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[tuple[int, object]]], JobClient]]:
    """Starts a dashboard that gives these answers about a job in turn, then the last one; it streams no log."""
    monkeypatch.setattr(module, "POLL_S", 0.01)
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(script: list[tuple[int, object]]) -> JobClient:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/api/version":
                    status, body = 200, {"version": "4", "ray_version": "2.60.0"}
                elif self.path == "/api/jobs/j-1/logs":
                    status, body = 200, {"logs": LOG}
                elif self.path == "/api/jobs/j-1":
                    status, body = script.pop(0) if len(script) > 1 else script[0]  # type: ignore[assignment]
                else:
                    status, body = 404, {}
                if status == 0:  # the connection breaks
                    self.connection.close()
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return job_client(f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_broken_connections_and_a_restarting_head_change_nothing(
    answers: Callable[[list[tuple[int, object]]], JobClient], capsys: pytest.CaptureFixture[str]
) -> None:
    """The follower says once that nothing answers, and once that it answers again; the whole log is printed."""
    silence = [(0, None), (503, "starting"), (500, "GCS is down"), (404, "not loaded yet")]
    script = [(200, details("RUNNING")), *silence, (200, details("RUNNING")), (200, details("FAILED", 7))]
    assert follow(answers(script), "j-1").exit_code == 7
    out, err = capsys.readouterr()
    assert out == LOG
    assert (err.count("Asking again"), err.count("answers again")) == (1, 1)


def test_a_job_that_the_cluster_forgot_is_lost(answers: Callable[[list[tuple[int, object]]], JobClient]) -> None:
    """A head without stored records forgets its jobs when it restarts."""
    with pytest.raises(UnknownJobError, match="j-1: the cluster lost the job"):
        follow(answers([(200, details("RUNNING")), (404, "Job j-1 does not exist")]), "j-1")


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (details("SUCCEEDED", 0), 0),
        (details("FAILED", 5), 5),
        (details("FAILED", -9), 137),
        (details("STOPPED"), 143),
    ],
)
def test_the_exit_code_is_that_of_the_command(found: Details, code: int) -> None:
    """A stopped one got SIGTERM."""
    assert end_of(JobDetails(**found)).exit_code == code  # type: ignore[arg-type]


def test_a_job_that_ended_without_its_command_is_lost() -> None:
    """Its node died, or it never started; Ray's reason is in the message."""
    with pytest.raises(ClusterError, match="the cluster lost the job or could not start it: actor died"):
        end_of(JobDetails(**details("FAILED", None, "actor died")))  # type: ignore[arg-type]
