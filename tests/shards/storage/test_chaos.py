"""The fault proxy before a real S3 server, and what a store makes of each fault."""

# Long: the proxy and what a store makes of each of its faults; both use the same stores.

import http.client
import os
import socket
import time
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal

import obstore
import pytest
from obstore.store import S3Store

from dray.cluster.quickstart.seaweed import SeaweedServer
from dray.shards import DamagedError, DeniedError, ExistsError, NotFoundError, Store, StoreError
from dray.shards.storage import retry
from tests.support.chaos import NO_PAUSES, Action, Asked, Chaos

DATA = bytes(range(256)) * 1024


@pytest.fixture
def url(s3: SeaweedServer) -> str:
    """An empty folder."""
    return s3.url(f"chaos/{uuid.uuid4().hex}")


@pytest.fixture
def store(s3: SeaweedServer, chaos: Chaos, url: str) -> Store:
    """The folder through the proxy, holding "a"; the log is empty."""
    store = Store(url, s3.storage_options | {"endpoint": chaos.endpoint})
    store.put_new("a", DATA)
    chaos.clear()
    return store


@pytest.fixture
def hurried(store: Store, s3: SeaweedServer, chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same without pauses between tries."""
    monkeypatch.setattr(retry, "PAUSES_S", (0, 0, 0))
    return Store(store.url, s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": NO_PAUSES})


@pytest.fixture
def hasty(s3: SeaweedServer, chaos: Chaos, url: str) -> Store:
    """The same for a client that never tries again."""
    return Store(url, s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": {"max_retries": 0}})


@pytest.fixture
def direct(s3: SeaweedServer, url: str) -> Store:
    """The same folder without the proxy: what is really there."""
    return Store(url, s3.storage_options)


# Without rules


def test_nothing_changes_without_rules(store: Store, direct: Store) -> None:
    """Whole and in parts, small and long, there and not there: as without the proxy."""
    long = os.urandom(12 << 20)
    store.put_new("long", long)
    with pytest.raises(ExistsError):
        store.put_new("a", b"other")
    assert (store.get("a"), store.get("long")) == (DATA, long)
    assert bytes(store.get_ranges("long", [5 << 20], [999])[0]) == long[5 << 20 :][:999]
    assert (store.head("a"), store.head("gone")) == (direct.head("a"), None)
    store.delete(["long"])
    assert store.list_folder() == direct.list_folder()


def test_the_log_tells_requests_ranges_and_bytes(store: Store, chaos: Chaos, url: str) -> None:
    """So that tests can count what a read costs."""
    store.get("a")
    store.get_ranges("a", [10], [100])
    store.head("a")
    folder = url.removeprefix("s3:/")
    assert chaos.log == [
        Asked("GET", f"{folder}/a", "", len(DATA)),
        Asked("GET", f"{folder}/a", "bytes=10-109", 100),
        Asked("HEAD", f"{folder}/a", "", 0),
    ]
    chaos.clear()
    assert chaos.log == []


def test_it_speaks_http_as_other_clients_do(s3: SeaweedServer, chaos: Chaos) -> None:
    """Over one connection: a body in chunks, one that waits for "100 Continue", HEAD, GET; signed for the proxy."""
    config = {name: value for name, value in s3.storage_options.items() if name not in ("endpoint", "allow_http")}
    client = S3Store(s3.bucket, endpoint=chaos.endpoint, client_options={"allow_http": True}, **config)

    def signed(method: Literal["GET", "HEAD", "PUT"], name: str) -> str:
        found = urllib.parse.urlsplit(obstore.sign(client, method, f"chaos/{name}", timedelta(minutes=5)))
        return f"{found.path}?{found.query}"

    connection = http.client.HTTPConnection(chaos.endpoint.removeprefix("http://"), timeout=30)
    connection.request("PUT", signed("PUT", "chunked"), iter([DATA, b"more"]), encode_chunked=True)
    first = connection.sock
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.request("HEAD", signed("HEAD", "chunked"))
    answer = connection.getresponse()
    assert (answer.status, answer.length, answer.read()) == (200, 0, b"")
    assert answer.headers["content-length"] == str(len(DATA) + 4)
    connection.request("GET", signed("GET", "chunked"))
    assert connection.getresponse().read() == DATA + b"more"
    connection.putrequest("PUT", signed("PUT", "waits"))
    connection.putheader("Expect", "100-continue")
    connection.putheader("Content-Length", str(len(DATA)))
    connection.endheaders()
    assert connection.sock.recv(100, socket.MSG_PEEK).startswith(b"HTTP/1.1 100 ")
    connection.send(DATA)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    assert connection.sock is first
    connection.close()
    assert Store(s3.url("chaos"), s3.storage_options).get("waits") == DATA


def test_an_error_comes_before_the_body_is_asked_for(chaos: Chaos) -> None:
    """A client that waits for "100 Continue" keeps its body."""
    chaos.rule("status", code=503)
    connection = http.client.HTTPConnection(chaos.endpoint.removeprefix("http://"), timeout=30)
    connection.putrequest("PUT", "/data/x")
    connection.putheader("Expect", "100-continue")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    assert connection.getresponse().status == 503
    connection.close()


# Which requests a rule takes


def test_a_rule_takes_what_it_names(store: Store, hasty: Store, chaos: Chaos) -> None:
    """By method and path, after some and only so often; others pass."""
    rule = chaos.rule("status", method="GET", path=r"/b$", after=1, times=2, code=500)
    store.put_new("b", b"cargo")
    found = []
    for _ in range(5):
        hasty.get("a")
        try:
            found.append(hasty.get("b"))
        except StoreError:
            found.append(b"")
    assert found == [b"cargo", b"", b"", b"cargo", b"cargo"]
    assert rule.hits == 2


def test_the_first_rule_that_takes_a_request_acts(store: Store, chaos: Chaos) -> None:
    """The next one acts on the next request."""
    rules = [chaos.rule("status", code=code, times=1) for code in (503, 500)]
    assert store.get("a") == DATA
    assert [rule.hits for rule in rules] == [1, 1]
    assert len(chaos.log) == 3


# Each fault


def test_latency_is_waited_for_by_all_at_once(store: Store, chaos: Chaos) -> None:
    """32 slow requests take about as long as one."""
    chaos.rule("latency", seconds=0.5)
    start = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(store.get, ["a"] * 32)) == [DATA] * 32
    assert 0.5 <= time.monotonic() - start < 4  # one after the other would be 16


@pytest.mark.parametrize("code", [500, 503])
def test_a_server_error_is_tried_again(store: Store, hasty: Store, direct: Store, chaos: Chaos, code: int) -> None:
    """Reads and writes alike; where it stays, it is a store's error."""
    rule = chaos.rule("status", code=code, times=2)
    store.put_new("b", b"cargo")
    assert (rule.hits, len(chaos.log)) == (2, 3)
    assert direct.get("b") == b"cargo"
    chaos.rule("status", code=code)
    for call in (lambda: hasty.get("a"), lambda: hasty.put_new("c", b""), lambda: hasty.list_folder()):
        with pytest.raises(StoreError, match=str(code)) as caught:
            call()
        assert type(caught.value) is StoreError
    assert direct.head("c") is None


def test_a_denial_is_not_tried_again(store: Store, chaos: Chaos) -> None:
    """Another try would not help."""
    chaos.rule("status", code=403)
    with pytest.raises(DeniedError):
        store.get("a")
    with pytest.raises(DeniedError):
        store.put_new("b", b"")
    assert len(chaos.log) == 2


@pytest.mark.parametrize("code", [409, 412])
def test_a_refused_condition_with_nothing_there_is_tried_again(
    store: Store, hasty: Store, direct: Store, chaos: Chaos, code: int
) -> None:
    """With 409 somebody was writing just then, and may have failed: HEAD tells."""
    chaos.rule("status", method="PUT", code=code, times=1)
    store.put_new("b", b"cargo")
    assert [found.method for found in chaos.log] == ["PUT", "HEAD", "PUT"]
    assert direct.get("b") == b"cargo"
    chaos.rule("status", method="PUT", code=code)
    with pytest.raises(StoreError, match="says both that the object exists and that it does not") as caught:
        hasty.put_new("c", b"")
    assert type(caught.value) is StoreError


def test_a_lost_reply_leaves_a_put_unknown(hasty: Store, direct: Store, chaos: Chaos) -> None:
    """It was done, a client that does not try again cannot know, and the error does not say which: read back."""
    rule = chaos.rule("lost_reply", method="PUT")
    with pytest.raises(StoreError, match=r"cannot write s3://.*/b") as caught:
        hasty.put_new("b", b"cargo")
    assert type(caught.value) is StoreError
    assert (rule.hits, direct.get("b")) == (1, b"cargo")


REQUESTS: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.put_new("b", DATA[:70_000]),
    "read": lambda store: store.get("a"),
    "read ranges": lambda store: [bytes(part) for part in store.get_ranges("a", [7, 99_999], [5, 1000], gap=0)],
    "look up": lambda store: store.head("a"),
    "list": lambda store: [info.name for info in store.list_folder()],
    "list tree": lambda store: [info.name for info in store.list_tree()],
    "list folders": lambda store: store.list_folders(),
    "delete": lambda store: store.delete(["a"]),
}
FAULTS: dict[str, dict[str, Any]] = {
    "lost reply": {"action": "lost_reply"},
    "cut answer": {"action": "reset_body", "at": 3},
    "500": {"action": "status", "code": 500},
    "503": {"action": "status", "code": 503},
    "429": {"action": "status", "code": 429},
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_that_fails_for_a_while_is_made_again(
    hurried: Store, direct: Store, chaos: Chaos, request_: str, fault: str, times: int
) -> None:
    """Whatever it asks for, and wherever it failed: it ends as if nothing had been."""
    call = REQUESTS[request_]
    chaos.rule(times=times, each=True, **FAULTS[fault])
    found, names = call(hurried), [info.name for info in direct.list_folder()]
    assert names == {"write": ["a", "b"], "delete": []}.get(request_, ["a"])
    if request_ == "write":
        assert direct.get("b") == DATA[:70_000]
    elif request_ != "delete":
        assert found == call(direct)


def test_a_put_tried_again_tells_its_own_object_from_another(hurried: Store, direct: Store, chaos: Chaos) -> None:
    """Its own, whose reply was lost, is a success; one that somebody else put there meanwhile is not overwritten."""
    chaos.rule("lost_reply", method="PUT", times=2)
    hurried.put_new("b", b"cargo")
    for number, other in enumerate([b"cargo!", b"carg", b"Cargo", b""]):
        direct.put_new(f"other{number}", other)
        chaos.rule("lost_reply", method="PUT", path=f"other{number}", times=2)
        with pytest.raises(ExistsError):
            hurried.put_new(f"other{number}", b"cargo")
        assert direct.get(f"other{number}") == other
    assert direct.get("b") == b"cargo"


@pytest.mark.parametrize("code", [400, 403])
def test_a_refusal_is_not_tried_again(store: Store, chaos: Chaos, code: int) -> None:
    """Another try would end alike."""
    chaos.rule("status", code=code)
    with pytest.raises(StoreError):
        store.put_new("b", b"cargo")
    assert len(chaos.log) == 1


def test_tries_end(hurried: Store, chaos: Chaos) -> None:
    """The error tells how many there were, and what was asked for."""
    chaos.rule("lost_reply", method="PUT")
    with pytest.raises(StoreError, match=r"cannot write s3://.*/b: .*\(4 tries in \d+ s\)"):
        hurried.put_new("b", b"cargo")


def test_a_lost_reply_to_a_read_is_asked_for_again(store: Store, chaos: Chaos) -> None:
    """Nothing came, so all of it comes the second time."""
    chaos.rule("lost_reply", times=1)
    assert store.get("a") == DATA
    assert [found.sent for found in chaos.log] == [0, len(DATA)]


def test_a_put_tried_again_may_meet_itself(store: Store, hasty: Store, direct: Store, chaos: Chaos) -> None:
    """Who tries a put again after a lost reply gets the error that the object exists: it may be its own."""
    chaos.rule("lost_reply", times=1)
    with pytest.raises(StoreError):
        hasty.put_new("b", b"cargo")
    with pytest.raises(ExistsError):
        hasty.put_new("b", b"cargo")
    assert direct.get("b") == b"cargo"


def test_a_cut_body_is_resumed(store: Store, hasty: Store, chaos: Chaos) -> None:
    """The client asks for the rest, not for all of it again; one that may not is an error, never short."""
    rule = chaos.rule("reset_body", method="GET", at=100_000, times=2)
    assert store.get("a") == bytes(store.get_ranges("a", [0], [len(DATA)])[0]) == DATA
    assert rule.hits == 2
    assert [found.sent for found in chaos.log].count(100_000) == 2
    assert sum(found.sent for found in chaos.log) <= 2 * (len(DATA) + 100_000)
    chaos.rule("reset_body", method="GET", at=100_000)
    for read in (lambda: hasty.get("a"), lambda: hasty.get_ranges("a", [0], [len(DATA)])):
        with pytest.raises(StoreError, match=r"cannot read s3://.*/a"):
            read()


def test_a_shorter_length_is_found_by_who_knows_the_size(store: Store, chaos: Chaos) -> None:
    """Ranges and streams name the damage. A plain `get` cannot know: it is for small objects that hold a digest."""
    chaos.rule("short_length", method="GET", at=1000)
    with pytest.raises(DamagedError, match="/a: 5000 bytes expected at offset 7, found 1000"):
        store.get_ranges("a", [7], [5000])
    with store.open_stream("a") as stream, pytest.raises(DamagedError, match=r"/a: .* found 1000"):
        stream.read()
    assert store.get("a") == DATA[:1000]


def test_a_flipped_byte_comes_through(store: Store, chaos: Chaos) -> None:
    """Nothing in HTTP finds it: checksums must."""
    chaos.rule("flip", method="GET", at=70_000, times=1)
    found = store.get("a")
    assert [(at, byte) for at, byte in enumerate(found) if byte != DATA[at]] == [(70_000, DATA[70_000] ^ 0xFF)]
    assert store.get("a") == DATA


@pytest.mark.parametrize("action", ["reset_body", "short_length", "flip"])
def test_a_body_too_short_for_a_fault_passes(store: Store, chaos: Chaos, action: Action) -> None:
    """And does not count as a hit: neither does an answer without a body, nor an error."""
    rules = [chaos.rule(action, path="/a$", at=len(DATA)), chaos.rule(action, path="/gone$")]
    assert store.get("a") == DATA
    assert store.head("a") is not None
    with pytest.raises(NotFoundError):
        store.get("gone")
    assert [rule.hits for rule in rules] == [0, 0]


def test_an_ignored_condition_looks_like_success(store: Store, direct: Store, chaos: Chaos) -> None:
    """Both writers believe that they won: only reading back tells."""
    rule = chaos.rule("ignore_condition")
    store.put_new("a", b"other")
    store.put_new("b", b"cargo")
    assert (rule.hits, direct.get("a"), direct.get("b")) == (1, DATA, b"cargo")


def test_a_folder_that_is_an_object_itself_is_not_listed(s3: SeaweedServer, direct: Store) -> None:
    """Consoles make an empty object for a folder; SeaweedFS keeps one where the last object was deleted."""
    for name in ("a", "d/a", "d/e/a"):
        direct.put_new(name, b"")
    direct.delete(["a", "d/a", "d/e/a"])
    assert [direct.list_folder(folder) for folder in ("", "d", "d/e")] == [[], [], []]


# Its end


def test_after_its_end_nothing_answers(s3: SeaweedServer, url: str) -> None:
    """Connections that clients kept are gone too, and one that waits is ended."""
    with ThreadPoolExecutor(1) as threads:
        with Chaos(int(s3.endpoint.rpartition(":")[2])) as chaos:
            options = s3.storage_options | {"endpoint": chaos.endpoint, "retry_config": {"max_retries": 0}}
            store = Store(url, options)
            store.put_new("a", DATA)
            chaos.rule("latency", seconds=60)
            slow = threads.submit(store.get, "a")
            while len(chaos.log) < 2:
                time.sleep(0.01)
        with pytest.raises(StoreError):
            slow.result(10)
    with pytest.raises(StoreError):
        store.get("a")
