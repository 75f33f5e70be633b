"""Which pickles the C unpickler may read: those whose every opcode is known beforehand to do no harm.

The C unpickler is fast, and with a `find_class` of ours it calls nothing foreign. What it cannot be kept from is
hashing: a tuple that holds another one twice, sixty levels deep, takes years as a key. So all opcodes are read here
first, runs of them by one regular expression, and a pickle is tame where

- its opcodes are those of plain values, and REDUCE and BUILD stand only in the phrases that numpy and torch write for
  an array, a scalar or a tensor: with the elements in place, so that nothing is copied twice,
- each key of a dict and each item of a set is text, bytes, a number of at most 64 bits, a bool or None. One taken from
  the memo counts as such only where the pickle makes no tuples, but for those in the phrases, which are small,
- the memo has at most 65,536 places, and each length lies inside the input.

Whatever deviates by an opcode is not tame, and `dray.loaders.unpickle` reads it by its own machine. Nothing is built.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

# ---- pieces of a pickle: possessive, as each opcode tells its length ----


def _of_any_length(longest: int, width: int) -> bytes:
    """A length of `width` bytes, up to `longest`, and as many bytes: regular expressions cannot count."""
    return b"(?:%b)" % b"|".join(b"%b.{%d}" % (re.escape(n.to_bytes(width, "little")), n) for n in range(longest + 1))


_MEMO = rb"(?:\x94|q.|r..\x00\x00)?+"
_GET = rb"(?:h.|j..\x00\x00)"
_MAX_TEXT = 40  # bytes of a text in a run; a longer one is passed over by itself
_FRAME = rb"(?:\x95.{8})?+"
_LONG = rb"\x8a%b" % _of_any_length(8, 1)
_NUMBER = rb"(?:[N\x88\x89)]|K.|G.{8}|M..|J.{4}|%b)" % _LONG
_NUMBERS = rb"(?:(?:G.{8})++|(?:K.)++|(?:M..)++|[N\x88\x89)]++|(?:J.{4})++|%b)" % _LONG
_SHORT_TEXT = rb"\x8c" + _of_any_length(_MAX_TEXT, 1)  # protocols 4 and 5
_LONG_TEXT = rb"X" + _of_any_length(_MAX_TEXT, 4)  # protocols 2 and 3

# ---- phrases: what numpy and torch write ----

_NEXT = _MEMO + _FRAME


def _name(module: str, attribute: str) -> bytes:
    """A global in any protocol from 2 on, or something from the memo: what does not fit, its call refuses."""
    fields = {b"module": module.encode(), b"attribute": attribute.encode(), b"m": _NEXT, b"g": _GET}
    text = rb"(?:\x8c.%(module)b%(m)b|%(g)b)\x8c.%(attribute)b%(m)b\x93%(m)b"
    return (rb"(?:" + text + rb"|c%(module)b\n%(attribute)b\n%(m)b|%(g)b)") % fields


_SIZE = rb"(?:K.|M..|J...[\x00-\x7f])"
_SHAPE = rb"(?:\)|(?:%(n)b\x85|%(n)b{2}\x86|%(n)b{3}\x87|\(%(n)b{4,64}t)%(m)b)" % {b"n": _SIZE, b"m": _NEXT}
_FIELDS = {
    b"m": _NEXT,
    b"g": _GET,
    b"shape": _SHAPE,
    b"dtype": _name("numpy", "dtype"),
    b"filled": _name(r"numpy\._?core\.multiarray", "_reconstruct"),
    b"ndarray": _name("numpy", "ndarray"),
    b"scalar": _name(r"numpy\._?core\.multiarray", "scalar"),
    b"buffer": _name(r"numpy\._?core\.numeric", "_frombuffer"),
    b"tensor": _name(r"torch\._utils", "_rebuild_tensor_v2"),
    b"storage": _name(r"torch\.storage", "_load_from_bytes"),
    b"hooks": _name("collections", "OrderedDict"),
    b"few": rb"C(?:\x01.|\x02..|\x04.{4}|\x08.{8})",
}
_FIELDS[b"described"] = (
    rb"(?:%(dtype)b(?:\x8c.|X...\x00)[a-z]\d{1,2}%(m)b\x89\x88\x87%(m)bR%(m)b"
    rb"\(K\x03(?:(?:\x8c\x01|X\x01\x00\x00\x00)[<>|]%(m)b|%(g)b)NNNJ\xff{4}J\xff{4}K\x00t%(m)bb|%(g)b)" % _FIELDS
)
_BEGIN = (
    rb"(?:(?P<filled>%(filled)b%(ndarray)b(?:K\x00\x85%(m)b|%(g)b)(?:C\x01b%(m)b|%(g)b)\x87%(m)bR%(m)b"
    rb"\(K\x01%(shape)b%(described)b[\x88\x89])"
    rb"|(?P<tensor>%(tensor)b\(%(storage)b)"
    rb"|(?P<buffer>%(buffer)b\()"
    rb"|(?P<scalar>%(scalar)b%(described)b%(few)b%(m)b\x86%(m)bR%(m)b)"
    rb"|(?P<ordered>%(hooks)b\)R%(m)b))" % _FIELDS
)
_PHRASE = re.compile(_BEGIN, re.DOTALL)
_ENDS: dict[str | None, re.Pattern[bytes]] = {  # what stands behind the elements
    name: re.compile(_FRAME + _NEXT + end % _FIELDS, re.DOTALL)
    for name, end in {
        "filled": rb"t%(m)bb" + _FRAME,
        "tensor": rb"\x85%(m)bR%(m)bK\x00%(shape)b%(shape)b[\x88\x89]%(hooks)b\)R%(m)bt%(m)bR%(m)b",
        "buffer": rb"%(described)b%(shape)b(?:\x8c\x01[CF]%(m)b|%(g)b)t%(m)bR%(m)b",
    }.items()
}

# ---- runs: possessive, as each opcode tells its length ----


@dataclass(frozen=True, slots=True)
class _Runs:
    """Expressions for what lies in a list, dict or set, up to a phrase that begins, and for a whole plain pickle."""

    items: "re.Pattern[bytes]"
    pairs: "re.Pattern[bytes]"
    keys: "re.Pattern[bytes]"
    plain: "re.Pattern[bytes]"


@cache
def _runs(*, protocol: int, got_keys: bool) -> _Runs:
    """The expressions, compiled when first needed.

    Args:
        protocol: What text looks like: 4 or 2.
        got_keys: Whether keys may come from the memo; then there are no tuples.
    """
    text = (_SHORT_TEXT if protocol == 4 else _LONG_TEXT) + _MEMO
    key = b"(?:%b|%b%b)" % (text, _NUMBER, b"|" + _GET if got_keys else b"")
    tuples = b"" if got_keys else rb"|[\x85-\x87]" + _MEMO

    atom = b"(?:%b|%b|%b)" % (text, _NUMBER, _GET)
    item = b"%b|(?:%b)++|%b%b" % (_NUMBERS, text, _GET, tuples)
    flat = _containers(item, atom, atom, key, tuples)
    nested = _containers(b"%b|%b" % (item, flat), b"(?:%b|%b)" % (atom, flat), atom, key, tuples)

    # Texts and references that begin a phrase are left to it (where they are not, the pickle is not seen to be tame).
    first = b"%b|%b%b|%b" % (_NUMBER, rb"(?!\x8c.(?:numpy|torch|collections)[.\x94])", text, _LONE_GET)
    items = b"(?:%b%b|%b)*+%b?" % (first, tuples, nested, _BEGIN)
    pairs = b"(?:%b(?:%b|%b))*+(?:%b%b)?" % (key, first, nested, key, _BEGIN)
    plain = rb"\x80.%b(?:%b|%b)++\." % (_FRAME, item, nested)
    return _Runs(*(re.compile(run, re.DOTALL) for run in (items, pairs, b"%b*+" % key, plain)))


_LONE_GET = (  # or a scalar of numpy, after the first of its type
    rb"%(g)b(?:%(g)b%(few)b%(m)b\x86%(m)bR%(m)b|(?!\x8c.[_rs]|\(|\)R|h.\x8c\x02[a-z]\d|h.(?:K\x00\x85|h.).{0,2}h.\x87))"
    % _FIELDS
)


def _containers(item: bytes, value: bytes, single: bytes, key: bytes, tuples: bytes) -> bytes:
    """A list, dict, set or, with `tuples`, a long tuple: of many items or values, or of one that is `single`."""
    fields = {b"m": _MEMO, b"item": item, b"value": value, b"single": single, b"key": key}
    long_tuple = rb"|\((?:%(item)b)*+t%(m)b" if tuples else b""
    return (
        rb"\]%(m)b(?:\((?:%(item)b)*+e|%(single)ba|(?!\())"
        rb"|\}%(m)b(?:\((?:%(key)b%(value)b)*+u|%(key)b%(single)bs|(?!\())"
        rb"|\x8f%(m)b(?:\((?:%(key)b)*+\x90|(?!\())" + long_tuple
    ) % fields


# ---- single opcodes ----

_SIMPLE, _GOT, _LIST, _DICT, _SET, _OTHER = range(6)  # kinds of items on the stack
_UNFILLED = frozenset((_LIST, _DICT, _SET))
_PUSHED = {  # opcode: its length, and what it puts on the stack
    **dict.fromkeys(b"N\x88\x89)", (1, _SIMPLE)),
    ord("K"): (2, _SIMPLE),
    ord("M"): (3, _SIMPLE),
    ord("J"): (5, _SIMPLE),
    ord("G"): (9, _SIMPLE),
    ord("h"): (2, _GOT),
    ord("]"): (1, _LIST),
    ord("}"): (1, _DICT),
    0x8F: (1, _SET),
}
_BYTEARRAY, _LONG_INT = 0x96, 0x8A
_SIZED = {0x8C: 1, ord("X"): 4, 0x8D: 8, ord("C"): 1, ord("B"): 4, 0x8E: 8, _BYTEARRAY: 8, _LONG_INT: 1}
_SKIPPED = re.compile(rb"(?:\x94|q.|r..\x00\x00|\x95.{8})++", re.DOTALL)
_BEGIN_OPCODES = frozenset(b"\x8chjc")
_HOLDERS = frozenset(b"CB\x8e\x96")
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_CLOSED = {ord("e"): _LIST, ord("u"): _DICT, 0x90: _SET}


class _WildError(Exception):
    """The pickle is not tame, or is not seen to be."""


def _require(condition: bool) -> None:
    if not condition:
        raise _WildError


@dataclass(slots=True)
class _Frame:
    """What lies on the stack from a MARK on, or all of it."""

    kind: int = _OTHER  # of the container that the items go into
    base: int = 0  # items below it
    start: int = 0  # where in the input its first item begins
    run: "re.Pattern[bytes] | None" = None


class _Scan:
    """One reading of the opcodes. Of what would lie on the stack it keeps the kind alone, and of runs nothing."""

    def __init__(self, data: bytes | memoryview, runs: _Runs, *, got_keys: bool) -> None:
        self.data, self.pos = data, 2
        self.kinds: list[int] = []
        self.frame = _Frame()
        self.outer: list[_Frame] = []
        self._keys = frozenset((_SIMPLE, _GOT) if got_keys else (_SIMPLE,))
        self._got_keys = got_keys
        self._runs = {_LIST: runs.items, _DICT: runs.pairs, _SET: runs.keys}
        self._again = 2 * len(data)  # bytes that may be read a second time

    def walk(self) -> None:
        """Read to the end.

        Raises:
            _WildError: An opcode, a key, a length or the end is not that of a tame pickle.
            IndexError: The input ends before.
        """
        data, kinds = self.data, self.kinds
        while True:
            frame = self.frame
            if frame.run is not None and (len(kinds) == frame.base or self._forget_whole(frame)):
                found = frame.run.match(data, self.pos)
                if found and found.end() > self.pos:
                    self._pass(found)
                    if found.lastgroup == "ordered":
                        kinds += (_SIMPLE, _DICT) if frame.kind == _DICT else (_DICT,)
                    continue
            opcode = data[self.pos]
            if opcode in _BEGIN_OPCODES and (found := _PHRASE.match(data, self.pos)):
                self._pass(found)
                kinds.append(_DICT if found.lastgroup == "ordered" else _OTHER)
            elif opcode in _PUSHED:
                num_bytes, kind = _PUSHED[opcode]
                self.pos += num_bytes
                kinds.append(kind)
            elif opcode in _SIZED:
                self.pos = self._behind(self.pos)
                kinds.append(_OTHER if opcode == _BYTEARRAY else _SIMPLE)
            elif opcode in _TAKE:
                self.pos += 1
                _TAKE[opcode](self, opcode)
            elif opcode == ord("."):
                break
            elif (found := _SKIPPED.match(data, self.pos)) is None:
                raise _WildError
            else:
                self.pos = found.end()
        _require(self.pos + 1 == len(data) and len(kinds) == 1 and not self.outer)

    def _forget_whole(self, frame: _Frame) -> bool:
        """Whether the items of a frame are complete, so that a run may follow; they are forgotten then."""
        kinds, base = self.kinds, frame.base
        if len(kinds) - base != (2 if frame.kind == _DICT else 1) or kinds[-1] in _UNFILLED:
            return False
        if frame.kind != _LIST and kinds[base] not in self._keys:
            return False
        del kinds[base:]
        return True

    def _pass(self, found: "re.Match[bytes]") -> None:
        """Go on behind a run or the beginning of a phrase, and behind the elements and the end of the phrase."""
        self.pos = found.end()
        if end := _ENDS.get(found.lastgroup):
            _require(self.data[self.pos] in _HOLDERS)
            behind = end.match(self.data, self._behind(self.pos))
            if behind is None:
                raise _WildError
            self.pos = behind.end()

    def _behind(self, start: int) -> int:
        """Where an opcode ends that tells its own length."""
        data = self.data
        opcode, first = data[start], start + 1 + _SIZED[data[start]]
        num_bytes = int.from_bytes(data[start + 1 : first], "little")
        _require(first + num_bytes < len(data) and (opcode != _LONG_INT or num_bytes <= 8))
        return first + num_bytes

    # ---- opcodes that take items off the stack ----

    def _open(self, _: int) -> None:
        """A MARK: items for the container before it, or for a tuple."""
        kind = self.kinds[-1] if len(self.kinds) > self.frame.base else _OTHER
        self.outer.append(self.frame)
        self.frame = _Frame(kind, len(self.kinds), self.pos, self._runs.get(kind))

    def _close(self) -> list[int]:
        """The kinds of what the innermost frame holds; the frame ends."""
        _require(bool(self.outer))
        taken = self.kinds[self.frame.base :]
        del self.kinds[self.frame.base :]
        self.frame = self.outer.pop()
        return taken

    def _take_items(self, opcode: int) -> None:
        """APPENDS, SETITEMS and ADDITEMS."""
        kind = _CLOSED[opcode]
        _require(self.frame.kind == kind)
        taken = self._close()
        if kind != _LIST:
            step = 2 if kind == _DICT else 1
            _require(len(taken) % step == 0 and self._keys.issuperset(taken[::step]))
        self._fill()

    def _take_single(self, opcode: int) -> None:
        """APPEND and SETITEM."""
        kind, num_items = (_LIST, 1) if opcode == ord("a") else (_DICT, 2)
        first = len(self.kinds) - num_items
        if first <= self.frame.base and self.frame.run is not None:
            self._read_again(self.frame)
            return
        _require(first > self.frame.base and self.kinds[first - 1] == kind)
        _require(kind == _LIST or self.kinds[first] in self._keys)
        del self.kinds[first:]
        self._fill()

    def _fill(self) -> None:
        """The container on top is whole, unless more items follow."""
        if self.data[self.pos] != ord("("):
            self.kinds[-1] = _OTHER

    def _take_marked_tuple(self, _: int) -> None:
        _require(not self._got_keys)
        self._close()
        self.kinds.append(_OTHER)

    def _take_tuple(self, opcode: int) -> None:
        _require(not self._got_keys)
        frame, first = self.frame, len(self.kinds) - _TUPLES[opcode]
        if first >= frame.base:
            self.kinds[first:] = [_OTHER]
        elif frame.kind == _LIST and frame.run:
            self.kinds[frame.base :] = [_OTHER]  # with items that a run passed over: the C unpickler counts them
        else:
            self._read_again(frame)

    def _read_again(self, frame: _Frame) -> None:
        """Begin a container anew, item by item: the opcode takes what a run has passed over."""
        self._again -= self.pos - frame.start
        _require(frame.run is not None and self._again >= 0)
        del self.kinds[frame.base :]
        self.pos, frame.run = frame.start, None


_TAKE: dict[int, Callable[[_Scan, int], None]] = {
    ord("("): _Scan._open,
    ord("t"): _Scan._take_marked_tuple,
    **dict.fromkeys(_TUPLES, _Scan._take_tuple),
    **dict.fromkeys(_CLOSED, _Scan._take_items),
    **dict.fromkeys(b"as", _Scan._take_single),
}


def is_tame(data: bytes | memoryview) -> bool:
    """Whether the C unpickler may read this pickle, given a `find_class` of our own."""
    protocol = _PROTOCOLS.get(bytes(data[:2]))
    if protocol is None or not _first_frame_fits(data):
        return False
    for got_keys in (False, True):
        runs = _runs(protocol=protocol, got_keys=got_keys)
        if runs.plain.fullmatch(data):
            return True
        try:
            _Scan(data, runs, got_keys=got_keys).walk()
        except (_WildError, IndexError):
            continue
        return True
    return False


def _first_frame_fits(data: bytes | memoryview) -> bool:
    """Whether a frame at the beginning, if there is one, reaches to the end, to another frame or to large elements."""
    if data[2:3] != b"\x95":
        return True
    end = 11 + int.from_bytes(data[3:11], "little")
    return end == len(data) or data[end : end + 1] in (b"\x95", b"B", b"X", b"\x8d", b"\x8e", b"\x96")


_PROTOCOLS = {b"\x80\x02": 2, b"\x80\x03": 2, b"\x80\x04": 4, b"\x80\x05": 4}
