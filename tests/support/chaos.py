"""A proxy on loopback that stands before an S3 server and does what networks and lesser stores do: late, cut, wrong.

Requests pass unchanged, the Host header included, so signatures stay right: a client needs nothing but the other
endpoint. Messages are held whole in memory, which keeps this short and is enough for tests.
"""

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from typing import Literal, Self

Action = Literal[
    "latency", "status", "lost_reply", "reset_body", "short_length", "flip", "ignore_condition", "shift_date"
]

PIECE_BYTES = 64 << 10
NO_PAUSES = {
    "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
}  # for a client
CODES = {  # how S3 names the errors that `status` gives
    403: "AccessDenied",
    400: "InvalidRequest",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


@dataclass(slots=True)
class Asked:
    """One request as it came, and how many bytes of body went back."""

    method: str
    path: str  # with its query, as sent
    range: str  # "" where none was asked for
    sent: int = 0


@dataclass(slots=True)
class Rule:
    """What happens to which requests; see `Chaos.rule`."""

    action: Action
    method: str
    path: re.Pattern[str]
    times: int | None
    after: int
    seconds: float
    code: int
    at: int
    each: bool
    seen: Counter[tuple[str, ...]] = field(default_factory=Counter)
    hits: int = 0  # how often it acted

    def takes(self, asked: Asked) -> bool:
        """Whether it acts on this request; each asking counts."""
        if self.method not in ("", asked.method) or not self.path.search(asked.path):
            return False
        request = (asked.method, asked.path, asked.range) if self.each else ()
        self.seen[request] += 1
        if self.seen[request] <= self.after or (self.times and self.seen[request] > self.after + self.times):
            return False
        self.hits += 1
        return True


@dataclass(slots=True)
class Message:
    """A request or an answer."""

    lines: list[str]  # the first line and the headers
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str:
        """The value of a header; "" where it is missing."""
        fields = (line.partition(":") for line in self.lines[1:])
        return next((value.strip() for key, _, value in fields if key.lower() == name), "")

    def set_length(self, length: int) -> None:
        """Say how long the body is, instead of what was said."""
        old = ("content-length:", "transfer-encoding:")
        self.lines = [line for line in self.lines if not line.lower().startswith(old)]
        self.lines.append(f"Content-Length: {length}")

    def shift_date(self, seconds: float) -> None:
        """Say that it is later than it is, or earlier."""
        date = parsedate_to_datetime(self.header("date")) + timedelta(seconds=seconds)
        self.lines = [line for line in self.lines if not line.lower().startswith("date:")]
        self.lines.append(f"Date: {format_datetime(date, usegmt=True)}")

    def head(self) -> bytes:
        """All but the body, as sent."""
        return "\r\n".join([*self.lines, "", ""]).encode("latin-1")


class Chaos:
    """The proxy, listening inside the `with`; without rules it changes nothing.

    Args:
        upstream_port: Where the S3 server listens on 127.0.0.1.

    Attributes:
        endpoint: What clients take for the S3 server's; known inside the `with`.
        log: What was asked, in order of arrival.
    """

    endpoint: str

    def __init__(self, upstream_port: int) -> None:
        self.log: list[Asked] = []
        self._upstream_port = upstream_port
        self._rules: list[Rule] = []
        self._end = asyncio.Event()

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="chaos", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def rule(
        self,
        action: Action,
        *,
        method: str = "",
        path: str = "",
        times: int | None = None,
        after: int = 0,
        seconds: float = 0,
        code: int = 0,
        at: int = 0,
        each: bool = False,
    ) -> Rule:
        """Add a rule. A request meets every latency, and of the other rules the first that takes it.

        Args:
            action: What happens:
                `latency`: the request waits `seconds` before it is passed on; others wait at the same time.
                `status`: it is not passed on; the answer is the error `code`.
                `lost_reply`: the server does what was asked, the client's connection is reset.
                `reset_body`: the connection is reset after `at` bytes of the body.
                `short_length`: the answer is whole with `at` bytes, as if the object ended there.
                `flip`: the byte at `at` in the body has all its bits turned.
                `ignore_condition`: a PUT that the server refused with 409 or 412 is answered as a success, as by a
                store that does not know conditions. (Such a store also overwrites; here the first bytes stay.)
                `shift_date`: the answer's Date is `seconds` later.
                The three that touch a body look only at successful answers that are longer than `at`.
            method: Of requests that it concerns; "" is any.
            path: A regular expression to be found in the path or query of requests that it concerns.
            times: How often it acts; None is always.
            after: How many requests that it concerns pass first.
            seconds: See `latency`.
            code: See `status`.
            at: See `reset_body`, `short_length` and `flip`.
            each: Whether `times` and `after` count each distinct request (method, path, range) by itself.

        Returns:
            The rule; `hits` counts how often it acted.
        """
        rule = Rule(action, method, re.compile(path), times, after, seconds, code, at, each)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget rules and log."""
        self._rules.clear()
        self.log.clear()

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its end cancels what still runs
            runner.run(self._listen(listener))

    async def _listen(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._serve, sock=listener)
        await self._end.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, kept alive from request to request."""
        writer.transport.set_write_buffer_limits(0)  # so that what was drained has left before a reset
        try:
            while await self._pass_on(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the `with` ended
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False where the connection ends with it."""
        request = await _read_head(reader)
        method, path, _ = request.lines[0].split(" ")
        asked = Asked(method, path, request.header("range"))
        self.log.append(asked)
        await asyncio.sleep(sum(rule.seconds for rule in self._rules if rule.action == "latency" and rule.takes(asked)))
        fault = self._take(["status", "lost_reply"], asked)
        waits = request.header("expect").lower() == "100-continue"
        if fault and fault.action == "status":
            if not waits:
                await _read_body(reader, request)
            await _send(writer, asked, _refusal(fault.code, method))
            return False
        if waits:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await _read_body(reader, request)
        answer = await self._ask(request, method)
        if fault:
            _reset(writer)
            return False
        return await self._answer(writer, asked, answer)

    async def _ask(self, request: Message, method: str) -> Message:
        """The server's answer, over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            writer.write(request.head() + request.body)
            await writer.drain()
            answer = await _read_head(reader)
            while _status(answer) < 200:
                answer = await _read_head(reader)
            if method != "HEAD" and _status(answer) not in (204, 304):
                await _read_body(reader, answer)
            return answer
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, asked: Asked, answer: Message) -> bool:
        """Send an answer, or what a rule makes of it; False where the connection ends with it."""
        if asked.method == "PUT" and _status(answer) in (409, 412) and self._take(["ignore_condition"], asked):
            answer = Message(["HTTP/1.1 200 OK", f'ETag: "{0:032x}"', "Content-Length: 0"])
        for rule in self._rules:
            if rule.action == "shift_date" and rule.takes(asked):
                answer.shift_date(rule.seconds)
        changes: list[Action] = ["reset_body", "short_length", "flip"]
        fault = self._take(changes, asked, len(answer.body)) if _status(answer) < 300 else None
        if fault and fault.action == "reset_body":
            answer.body = answer.body[: fault.at]
        elif fault and fault.action == "short_length":
            answer.body = answer.body[: fault.at]
            answer.set_length(fault.at)
        elif fault:
            changed = bytearray(answer.body)
            changed[fault.at] ^= 0xFF
            answer.body = bytes(changed)
        await _send(writer, asked, answer)
        if fault and fault.action == "reset_body":
            _reset(writer)
            return False
        return answer.header("connection").lower() != "close"

    def _take(self, actions: Sequence[Action], asked: Asked, body_bytes: int = 1) -> Rule | None:
        """The first rule of these actions that takes the request."""
        rules = (rule for rule in self._rules if rule.action in actions and rule.at < body_bytes)
        return next((rule for rule in rules if rule.takes(asked)), None)


def _status(answer: Message) -> int:
    return int(answer.lines[0].split(" ")[1])


def _refusal(code: int, method: str) -> Message:
    body = f'<?xml version="1.0"?><Error><Code>{CODES[code]}</Code><Message>injected</Message></Error>'.encode()
    lines = [f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", "Content-Type: application/xml", "Connection: close"]
    return Message([*lines, f"Content-Length: {len(body)}"], b"" if method == "HEAD" else body)


async def _read_head(reader: asyncio.StreamReader) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    return Message(head.decode("latin-1").split("\r\n")[:-2])


async def _read_body(reader: asyncio.StreamReader, message: Message) -> None:
    """Read the body that a head announces; a chunked one is joined and gets a length."""
    if message.header("transfer-encoding").lower() != "chunked":
        message.body = await reader.readexactly(int(message.header("content-length") or 0))
        return
    chunks = []
    while size := int((await reader.readline()).partition(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readline()
    while (await reader.readline()).strip():  # trailers
        pass
    message.body = b"".join(chunks)
    message.set_length(len(message.body))


async def _send(writer: asyncio.StreamWriter, asked: Asked, answer: Message) -> None:
    """Bytes are counted before they leave, so that a client that has them finds them in the log."""
    writer.write(answer.head())
    for start in range(0, len(answer.body), PIECE_BYTES):
        piece = answer.body[start : start + PIECE_BYTES]
        asked.sent += len(piece)
        writer.write(piece)
        await writer.drain()
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side gets an error, not an end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
