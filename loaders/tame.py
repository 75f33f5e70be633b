"""Which pickles the C unpickler may read: those whose every opcode is known beforehand to do no harm.

The C unpickler is fast, and with a `find_class` of ours it calls nothing foreign. What it cannot be kept from is
hashing: a tuple that holds another one twice, sixty levels deep, takes years as a key. So all opcodes are read here
first, runs of them by one regular expression, and a pickle is tame where

- its opcodes are those of plain values, and REDUCE and BUILD stand only in the phrases that numpy and torch write for
  an array, a scalar or a tensor: with the elements in place, so that nothing is copied twice,
- each key of a dict and each item of a set is text, bytes, a number of at most 64 bits, a bool or None. One taken from
  the memo counts as such only where the pickle makes no tuples, but for those in the phrases, which are small,
- the memo has at most 65,536 places, and each length lies inside the input.

Whatever deviates by an opcode is not tame, and `dray.loaders.unpickle` reads it by its own machine. Nothing is built here.
"""

import re
from dataclasses import dataclass
from functools import cache

# ---- pieces of a pickle: possessive, as each opcode tells its length ----


def _of_any_length(longest: int, width: int) -> bytes:
    """A length of `width` bytes, up to `longest`, and as many bytes: regular expressions cannot count."""
    return b"(?:%b)" % b"|".join(b"%b.{%d}" % (re.escape(n.to_bytes(width, "little")), n) for n in range(longest + 1))


_MEMO = rb"(?:\x94|q.|r..\x00\x00)?+"
_GET = rb"(?:h.|j..\x00\x00)"
_NUMBER = rb"(?:[N\x88\x89]|K.|G.{8}|M..|J.{4}|\x8a%b)" % _of_any_length(8, 1)
_TEXT = rb"(?:\x8c%b|X%b)%b" % (_of_any_length(255, 1), _of_any_length(127, 4), _MEMO)

# ---- phrases: what numpy and torch write ----

_PACKAGES = (b"numpy", b"torch", b"colle")
_NEXT = _MEMO + rb"(?:\x95.{8})?+"  # a frame may begin


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
_BEGIN = re.compile(
    rb"(?P<filled>%(filled)b%(ndarray)b(?:K\x00\x85%(m)b|%(g)b)(?:C\x01b%(m)b|%(g)b)\x87%(m)bR%(m)b"
    rb"\(K\x01%(shape)b%(described)b[\x88\x89])"
    rb"|(?P<tensor>%(tensor)b\(%(storage)b)"
    rb"|(?P<buffer>%(buffer)b\()"
    rb"|(?P<scalar>%(scalar)b%(described)b%(few)b%(m)b\x86%(m)bR%(m)b)"
    rb"|(?P<ordered>%(hooks)b\)R%(m)b)" % _FIELDS,
    re.DOTALL,
)
_ENDS = {  # what stands behind the elements
    name: re.compile(rb"(?:\x95.{8})?+%(m)b" % _FIELDS + end % _FIELDS, re.DOTALL)
    for name, end in {
        "filled": rb"t%(m)bb(?:\x95.{8})?+",
        "tensor": rb"\x85%(m)bR%(m)bK\x00%(shape)b%(shape)b[\x88\x89]%(hooks)b\)R%(m)bt%(m)bR%(m)b",
        "buffer": rb"%(described)b%(shape)b(?:\x8c\x01[CF]%(m)b|%(g)b)t%(m)bR%(m)b",
    }.items()
}

# ---- runs: possessive, as each opcode tells its length ----

# Texts and references that begin a phrase are left to it (where they are not, the pickle is not seen to be tame).
_VALUE_TEXT = rb"(?!\x8c.(?:numpy|torch|collections)[.\x94q])" + _TEXT
_VALUE_GET = (
    rb"%(g)b(?:%(g)b%(few)b%(m)b\x86%(m)bR%(m)b|(?!\x8c.[_rs]|\(|\)R|h.(?:K\x00\x85|h.).{0,2}h.\x87))" % _FIELDS
)
_ATOM = b"(?:%b|%b|%b)" % (_NUMBER, _VALUE_TEXT, _VALUE_GET)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Expressions for the items of a list, a dict and a set; each matches nothing at least."""

    items: "re.Pattern[bytes]"
    pairs: "re.Pattern[bytes]"
    keys: "re.Pattern[bytes]"


@cache
def _runs(*, got_keys: bool) -> _Runs:
    """Runs with flat containers inside, compiled when first needed; tuples take items of a list, never of a dict."""
    key = b"(?:%b|%b|%b)" % (_TEXT, _NUMBER, _GET) if got_keys else b"(?:%b|%b)" % (_TEXT, _NUMBER)
    item = _ATOM if got_keys else rb"%b|[\x85-\x87]%b" % (_ATOM, _MEMO)
    fields = {b"m": _MEMO, b"atom": _ATOM, b"key": key, b"item": item}
    flat = rb"\]%(m)b(?:\((?:%(item)b)*+e|%(atom)ba|(?!\())" % fields
    flat += rb"|\}%(m)b(?:\((?:%(key)b%(atom)b)*+u|%(key)b%(atom)bs|(?!\())" % fields
    items, pairs = b"(?:%b|%b)*+" % (item, flat), b"(?:%b(?:%b|%b))*+" % (key, _ATOM, flat)
    return _Runs(*(re.compile(run, re.DOTALL) for run in (items, pairs, b"%b*+" % key)))


# ---- single opcodes ----

_KEY_KIND, _GOT, _LIST, _DICT, _SET, _OTHER = range(6)
_PUSHED = {  # opcode: its length, and what it puts on the stack
    **dict.fromkeys(b"N\x88\x89)", (1, _KEY_KIND)),
    **{ord("K"): (2, _KEY_KIND), ord("M"): (3, _KEY_KIND), ord("J"): (5, _KEY_KIND), ord("G"): (9, _KEY_KIND)},
    **{ord("h"): (2, _GOT), ord("]"): (1, _LIST), ord("}"): (1, _DICT), 0x8F: (1, _SET)},
}
_SHORT_TEXT, _BYTEARRAY, _LONG = 0x8C, 0x96, 0x8A
_SIZED = {_SHORT_TEXT: 1, ord("X"): 4, 0x8D: 8, ord("C"): 1, ord("B"): 4, 0x8E: 8, _BYTEARRAY: 8, _LONG: 1}
_SKIPPED = re.compile(rb"(?:\x94|q.|r..\x00\x00|\x95.{8})++", re.DOTALL)
_BEGINS_A_PHRASE = frozenset(b"\x8chjc")
_HOLDERS = frozenset(b"CB\x8e\x96")
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_CLOSED = {ord("e"): _LIST, ord("u"): _DICT, 0x90: _SET}


class _WildError(Exception):
    """The pickle is not tame, or is not seen to be."""


@dataclass(slots=True)
class _Frame:
    """What lies on the stack from a MARK on, or all of it."""

    kind: int = _OTHER  # of the container that the items go into
    base: int = 0  # items below it
    start: int = 0  # where in the input its first item begins
    run: "re.Pattern[bytes] | None" = None


class _Scan:
    """One reading of the opcodes. Of what would lie on the stack it keeps the kind alone, and of runs nothing."""

    def __init__(self, data: bytes | memoryview, *, got_keys: bool) -> None:
        self.data, self.pos = data, 2
        self.kinds: list[int] = []
        self.frame = _Frame()
        self.outer: list[_Frame] = []
        self._got_keys = got_keys
        runs = _runs(got_keys=got_keys)
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
            if self.frame.run is not None:
                self._pass_run(self.frame)
            opcode = data[self.pos]
            if opcode in _BEGINS_A_PHRASE and self._pass_phrase(opcode):
                continue
            if pushed := _PUSHED.get(opcode):
                self.pos += pushed[0]
                kinds.append(pushed[1])
            elif opcode in _SIZED:
                self._push_sized(opcode)
            elif found := _SKIPPED.match(data, self.pos):
                self.pos = found.end()
            elif opcode == ord("."):
                break
            else:
                self.pos += 1
                self._take(opcode)
        _require(self.pos + 1 == len(data) and len(kinds) == 1 and not self.outer)

    def _pass_run(self, frame: _Frame) -> None:
        """Go on behind the next run, where the items so far are whole; they are forgotten."""
        waiting = len(self.kinds) - frame.base
        if frame.kind == _DICT:
            if waiting != 2 * (waiting > 0 and self._is_key(self.kinds[frame.base])):
                return
        elif waiting > 1:
            return
        if waiting and self.kinds[-1] in (_LIST, _DICT, _SET):
            return
        if frame.kind == _SET:
            self._check_keys(self.kinds[frame.base :])
        del self.kinds[frame.base :]
        found = frame.run.match(self.data, self.pos) if frame.run else None
        self.pos = found.end() if found else self.pos

    def _pass_phrase(self, opcode: int) -> bool:
        """Go on behind an array, a scalar or a tensor, if one begins here."""
        if opcode == _SHORT_TEXT and bytes(self.data[self.pos + 2 : self.pos + 7]) not in _PACKAGES:
            return False
        found = _BEGIN.match(self.data, self.pos)
        if found is None:
            return False
        self.pos = found.end()
        end = _ENDS.get(found.lastgroup or "")
        if end is not None:
            _require(self.data[self.pos] in _HOLDERS)
            self._push_sized(self.data[self.pos])
            self.kinds.pop()
            found_end = end.match(self.data, self.pos)
            _require(found_end is not None)
            self.pos = found_end.end()  # type: ignore[union-attr]
        self.kinds.append(_DICT if found.lastgroup == "ordered" else _OTHER)
        return True

    def _push_sized(self, opcode: int) -> None:
        first = self.pos + 1 + _SIZED[opcode]
        num_bytes = int.from_bytes(self.data[self.pos + 1 : first], "little")
        _require(opcode != _LONG or num_bytes <= 8)
        self.pos = first + num_bytes
        self.kinds.append(_OTHER if opcode == _BYTEARRAY else _KEY_KIND)

    def _is_key(self, kind: int) -> bool:
        return kind == _KEY_KIND or (kind == _GOT and self._got_keys)

    def _check_keys(self, kinds: list[int]) -> None:
        _require(all(map(self._is_key, kinds)))

    # ---- opcodes that take items off the stack ----

    def _take(self, opcode: int) -> None:
        if opcode == ord("("):
            self._open()
        elif length := _TUPLES.get(opcode):
            self._take_tuple(length)
        elif opcode == ord("t"):
            _require(not self._got_keys)
            self._close()
            self.kinds.append(_OTHER)
        elif opcode in _CLOSED:
            self._take_items(_CLOSED[opcode])
        elif opcode == ord("a"):
            self._take_single(_LIST, 1)
        elif opcode == ord("s"):
            self._take_single(_DICT, 2)
        else:
            raise _WildError

    def _open(self) -> None:
        """A MARK: items for the container before it, or for a tuple."""
        kind = self.kinds[-1] if len(self.kinds) > self.frame.base else _OTHER
        self.outer.append(self.frame)
        self.frame = _Frame(kind, len(self.kinds), self.pos, self._runs.get(kind))

    def _close(self) -> list[int]:
        """The kinds of what the innermost frame holds; the frame ends."""
        taken = self.kinds[self.frame.base :]
        del self.kinds[self.frame.base :]
        self.frame = self.outer.pop()
        return taken

    def _take_items(self, kind: int) -> None:
        _require(self.frame.kind == kind)
        taken = self._close()
        if kind == _DICT:
            _require(len(taken) % 2 == 0)
        if kind != _LIST:
            self._check_keys(taken[:: 2 if kind == _DICT else 1])
        self._fill()

    def _take_single(self, kind: int, num_items: int) -> None:
        """APPEND and SETITEM."""
        _require(len(self.kinds) - self.frame.base > num_items and self.kinds[-1 - num_items] == kind)
        if kind == _DICT:
            self._check_keys(self.kinds[-2:-1])
        del self.kinds[-num_items:]
        self._fill()

    def _fill(self) -> None:
        """The container on top is whole, unless more items follow."""
        if self.data[self.pos] != ord("("):
            self.kinds[-1] = _OTHER

    def _take_tuple(self, length: int) -> None:
        _require(not self._got_keys)
        first = len(self.kinds) - length
        if first >= self.frame.base:
            self.kinds[first:] = [_OTHER]
        elif self.frame.kind == _LIST and self.frame.run:
            self.kinds[self.frame.base :] = [_OTHER]  # the items that a run passed over: the C unpickler counts them
        else:
            self._read_again(self.frame)

    def _read_again(self, frame: _Frame) -> None:
        """Begin a dict or set anew, item by item: the tuple takes what a run has passed over."""
        _require(frame.run is not None)
        self._again -= self.pos - frame.start
        _require(self._again >= 0)
        del self.kinds[frame.base :]
        self.pos, frame.run = frame.start, None


def _require(condition: bool) -> None:
    if not condition:
        raise _WildError


def is_tame(data: bytes | memoryview) -> bool:
    """Whether the C unpickler may read this pickle, given a `find_class` of our own."""
    if data[:1] != b"\x80" or data[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return False
    for got_keys in (False, True):
        try:
            _Scan(data, got_keys=got_keys).walk()
        except (_WildError, IndexError):
            continue
        return True
    return False
