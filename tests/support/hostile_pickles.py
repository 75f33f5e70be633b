"""Pickles that must be refused, and the pieces to build them."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch


def text(value: str) -> bytes:
    """A short string in protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def blob(value: bytes) -> bytes:
    """Bytes in protocol 3."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    """A global in protocol 4."""
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """A call with pickled arguments."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def storage(content: bytes, kind: bytes = b"torch\nFloatStorage", count: int | None = None) -> bytes:
    """A storage as torch.save writes it, with the given count."""
    good = io.BytesIO()
    torch.save(torch.zeros(2).untyped_storage(), good, _use_new_zipfile_serialization=False)
    head = good.getvalue()[: -8 - 8].replace(b"torch.storage\nUntypedStorage", kind)
    return head + struct.pack("<q", len(content) // 4 if count is None else count) + content


def tensor(content: bytes, offset: int = 0, size: bytes = b"K\x02\x85", stride: bytes = b"K\x01\x85") -> bytes:
    """A tensor of two floats over `content`, with the given offset, size and stride."""
    held = call("torch.storage", "_load_from_bytes", blob(content))
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils", "_rebuild_tensor_v2", held, b"J" + struct.pack("<i", offset), size, stride, b"\x89", hooks
    )


def saved(value: Any, *, new: bool) -> bytes:
    """The bytes of torch.save, in the new (zip) or the old format."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


class Evil:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/owned",)


def array(dtype: bytes, shape: bytes, content: bytes) -> bytes:
    """An array with the given dtype, shape and content."""
    made = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", blob(b"b"))
    return made + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


FLOAT = call("numpy", "dtype", text("f4"), b"\x89\x88")
LONG_TEXT = b"X" + struct.pack("<I", 1 << 16) + b"x" * (1 << 16) + b"\x94"
NESTED_TUPLES = b")" + b"2\x86" * 60  # each level contains the one below twice: 2**60 leaves to hash

HOSTILE = {
    "reduce": pickle.dumps(Evil()),
    "reduce in protocol 0": pickle.dumps(Evil(), 0),
    "reduce under its Python 2 name": b"cposix\nsystem\n(S'true'\ntR.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "inst of a safe name": b"(ibuiltins\nset\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "obj of a safe name": b"(cbuiltins\nset\no.",
    "extension code": whole(b"\x82\x01"),
    "extension code of 4 bytes": whole(b"\x84\x01\x00\x00\x00"),
    "persistent id": b"Px\n.",
    "binary persistent id": whole(text("x") + b"Q"),
    "persistent id of nested tuples": whole(NESTED_TUPLES + b"Q"),
    "out-of-band buffer": b"\x80\x05\x97.",
    "read-only buffer": b"\x80\x05" + blob(b"x") + b"\x98.",
    "newobj": whole(name("subprocess", "Popen") + text("true") + b"\x85\x81"),
    "newobj of a safe name": whole(name("builtins", "set") + b")\x81"),
    "newobj_ex": whole(name("subprocess", "Popen") + b")}\x92"),
    "newobj_ex of a safe name": whole(name("builtins", "set") + b")}\x92"),
    "dotted name": whole(call("builtins", "set.__init__.__globals__")),
    "dotted module": whole(call("torch", "storage.os.system", text("true"))),
    "module of torch": whole(call("torch.storage.os", "system", text("true"))),
    "getattr": whole(call("builtins", "getattr", name("os", "system"), text("__call__"))),
    "getattr on a safe name": whole(call("builtins", "getattr", name("builtins", "set"), text("__init__"))),
    "eval": whole(call("builtins", "eval", text("1"))),
    "import": whole(call("builtins", "__import__", text("os"))),
    "attrgetter": whole(call("operator", "attrgetter", text("system"))),
    "methodcaller": whole(call("operator", "methodcaller", text("system"), text("true"))),
    "partial": whole(call("functools", "partial", name("builtins", "set"))),
    "reduce of functools": whole(call("functools", "reduce", name("builtins", "set"))),
    "map": whole(call("builtins", "map", name("builtins", "set"), b"]")),
    "itemgetter": whole(call("operator", "itemgetter", text("system"))),
    "methodcaller in an old protocol": b"coperator\nmethodcaller\n(S'system'\ntR.",
    "accumulate": whole(call("itertools", "accumulate", b"]", name("os", "system"))),
    "filter": whole(call("builtins", "filter", name("os", "system"), b"]")),
    "cached property": whole(call("functools", "cached_property", name("os", "system"))),
    "getattr chain": whole(call("builtins", "getattr", call("builtins", "getattr", b"N", text("x")), text("y"))),
    "globals of a function": whole(name("torch._utils", "_rebuild_tensor_v2.__globals__")),
    "subclasses of object": whole(call("builtins", "object.__subclasses__")),
    "type": whole(call("builtins", "type", text("X"), b")", b"}")),
    "compile": whole(call("builtins", "compile", text("1"), text("x"), text("eval"))),
    "open": whole(call("builtins", "open", text("/etc/hostname"))),
    "io.open": whole(call("io", "open", text("/etc/hostname"))),
    "pickle.loads": whole(call("pickle", "loads", blob(pickle.dumps(Evil())))),
    "Unpickler": whole(call("_pickle", "loads", blob(pickle.dumps(Evil())))),
    "marshal": whole(call("marshal", "loads", blob(b"N"))),
    "code": whole(call("types", "CodeType")),
    "function": whole(call("types", "FunctionType")),
    "popen": whole(call("os", "popen", text("true"))),
    "socket": whole(call("socket", "create_connection", text("127.0.0.1"))),
    "urlopen": whole(call("urllib.request", "urlopen", text("file:///etc/hostname"))),
    "importlib": whole(call("importlib", "import_module", text("this"))),
    "pkgutil": whole(call("pkgutil", "resolve_name", text("os:system"))),
    "ctypes": whole(call("ctypes", "CDLL", text("libc.so.6"))),
    "copyreg": whole(call("copyreg", "add_extension", text("os"), text("system"), b"K\x01")),
    "reconstructor of a program": b"ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
    "cpp extension": whole(call("torch.utils.cpp_extension", "load_inline", text("x"), text("y"))),
    "jit": whole(call("torch.jit", "load", text("/etc/hostname"))),
    "genfromtxt": whole(call("numpy", "genfromtxt", text("/etc/hostname"))),
    "ndarray called": whole(call("numpy", "ndarray", b"K\x09\x85")),
    "zip archive around": saved(Evil(), new=True),
    "old format around": saved(Evil(), new=False),
    "torch's storage by a rebuild of a rebuild": whole(
        call("torch._utils", "_rebuild_device_tensor_from_numpy", b"N", text("f4"), text("cpu"), b"\x89")
    ),
    "storage of a zip archive": whole(
        call("torch.storage", "_load_from_bytes", blob(saved(torch.ones(2).untyped_storage(), new=True)))
    ),
    "storage of a tensor's file": whole(
        call("torch.storage", "_load_from_bytes", blob(saved(torch.ones(2), new=False)))
    ),
    "polyglot of two protocols": b"\x80\x04N.\x80\x02cos\nsystem\n.",
    "pickle behind a zip archive": saved(torch.ones(2), new=True) + pickle.dumps(Evil()),
    "run_string": whole(call("numpy.testing._private.utils", "runstring", text("1"), b"}")),
    "torch.load": whole(call("torch", "load", text("/etc/hostname"))),
    "torch.hub": whole(call("torch.hub", "load", text("a"), text("b"))),
    "numpy.load": whole(call("numpy", "load", text("/etc/hostname"))),
    "numpy.memmap": whole(call("numpy", "memmap", text("/etc/hostname"))),
    "call of a value": whole(text("x") + b")R"),
    "call of a call's result": whole(call("collections", "OrderedDict") + b")R"),
    "build on a stand-in": whole(name("builtins", "set") + b"}" + text("call") + text("x") + b"sb"),
    "build on a tensor": whole(tensor(storage(bytes(8))) + b"}" + text("__class__") + b"Nsb"),
    "build on a list": whole(b"]}b"),
    "build of dunders": whole(call("collections", "OrderedDict") + b"}" + text("__class__") + b"Nsb"),
    "append to a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 0) + b"K\x01a.",
    "items of a tensor": whole(tensor(storage(bytes(8))) + b"K\x00K\x01s"),
    "class as a value": whole(name("collections", "OrderedDict")),
    "class in a list": whole(b"]" + name("collections", "OrderedDict") + b"a"),
    "class in a tuple in a dict": whole(b"}K\x01" + name("builtins", "set") + b"\x85\x85s"),
    "class as a key": whole(b"}" + name("builtins", "set") + b"K\x01s"),
    "class as state": whole(call("collections", "OrderedDict") + b"}" + text("a") + name("builtins", "set") + b"sb"),
    "tensor as a key": whole(b"}" + tensor(storage(bytes(8))) + b"K\x01s"),
    "evil storage": whole(call("torch.storage", "_load_from_bytes", blob(pickle.dumps(Evil())))),
    "evil storage in the old format": whole(call("torch.storage", "_load_from_bytes", blob(saved(Evil(), new=False)))),
    "evil storage in the zip format": whole(call("torch.storage", "_load_from_bytes", blob(saved(Evil(), new=True)))),
    "evil after a storage's magic": whole(tensor(storage(bytes(8))[:15] + pickle.dumps(Evil()))),
    "evil kind of storage": whole(tensor(storage(bytes(8), kind=b"os\nsystem"))),
    "storage of text": whole(call("torch.storage", "_load_from_bytes", text("x"))),
    "storage that announces more": whole(tensor(storage(bytes(8), count=3))),
    "storage that announces the moon": whole(tensor(storage(bytes(8), count=1 << 61))),
    "storage that announces less than nothing": whole(tensor(storage(bytes(8), count=-2))),
    "storage cut short": whole(tensor(storage(bytes(8))[:-3])),
    "tensor larger than its storage": whole(tensor(storage(bytes(8)), size=b"K\x03\x85")),
    "tensor behind its storage": whole(tensor(storage(bytes(8)), offset=1)),
    "tensor before its storage": whole(tensor(storage(bytes(8)), offset=-1)),
    "stride out of its storage": whole(tensor(storage(bytes(8)), stride=b"K\x02\x85")),
    "negative stride": whole(tensor(storage(bytes(8)), offset=1, stride=b"J\xff\xff\xff\xff\x85")),
    "negative size": whole(tensor(storage(bytes(8)), size=b"J\xff\xff\xff\xff\x85")),
    "size of floats": whole(tensor(storage(bytes(8)), size=b"G" + struct.pack(">d", 2) + b"\x85")),
    "more sizes than strides": whole(tensor(storage(bytes(8)), size=b"K\x01K\x02\x86")),
    "expanded to the moon": whole(tensor(storage(bytes(8)), size=b"J\xff\xff\xff\x7f\x85", stride=b"K\x00\x85")),
    "tensor at a fraction": whole(tensor(storage(bytes(8))).replace(b"J\0\0\0\0", b"G" + bytes(8))),
    "tensor of more strides than dimensions": whole(tensor(storage(bytes(8)), stride=b"K\x01K\x01\x86")),
    "tensor of fewer strides than dimensions": whole(tensor(storage(bytes(8)), size=b"K\x02K\x01\x86")),
    "array made with a shape": whole(
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x05\x85", blob(b"b"))
    ),
    "array made with a dtype": whole(
        call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), b"K\x00\x85", blob(b"d"))
    ),
    "array of another type": whole(
        call("numpy.core.multiarray", "_reconstruct", name("builtins", "set"), b"K\x00\x85", blob(b"b"))
    ),
    "tensor of no dtype": whole(
        call(
            "torch._utils",
            "_rebuild_tensor_v3",
            call("torch.storage", "_load_from_bytes", blob(storage(bytes(8)))),
            *(b"K\x00", b"K\x02\x85", b"K\x01\x85", b"\x89", call("collections", "OrderedDict"), text("float32")),
        )
    ),
    "tensor over text": whole(tensor(b"").replace(b"_load_from_bytes", b"_load_from_bytez")),
    "array larger than its bytes": whole(array(FLOAT, b"K\x03\x85", blob(bytes(8)))),
    "array smaller than its bytes": whole(array(FLOAT, b"K\x01\x85", blob(bytes(8)))),
    "array of negative shape": whole(array(FLOAT, b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", blob(bytes(8)))),
    "array of pointers": whole(array(call("numpy", "dtype", text("O8"), b"\x89\x88"), b"K\x01\x85", blob(bytes(8)))),
    "array with a lying dtype": whole(array(text("f4"), b"K\x02\x85", blob(bytes(8)))),
    "buffer of pointers": whole(
        call(
            "numpy.core.numeric",
            "_frombuffer",
            blob(bytes(8)),
            call("numpy", "dtype", text("O8")),
            b"K\x01\x85",
            text("C"),
        )
    ),
    "scalar of pointers": whole(
        call("numpy.core.multiarray", "scalar", call("numpy", "dtype", text("O8")), blob(bytes(8)))
    ),
    "dtype by a class": whole(call("numpy", "dtype", name("builtins", "set"))),
    "dtype of fields by text": whole(call("numpy", "dtype", text("f4,O"))),
    "dtype that grows": whole(call("numpy", "dtype", text("V4")) + b"(K\x03" + text("|") + b"NNNM\x00\x10K\x01K\x00tb"),
    "dtype whose fields need more": whole(
        call("numpy", "dtype", text("V4"))
        + b"(K\x03"
        + text("|")
        + b"N"
        + text("a")
        + b"\x85}"
        + text("a")
        + FLOAT
        + b"K\x00\x86sM\x00\x10K\x01K\x10tb"
    ),
    "nothing": b"",
    "no end": b"\x80\x04N",
    "cut short": pickle.dumps(torch.zeros(4))[:-40],
    "trailing byte": pickle.dumps(1) + b"x",
    "trailing byte in a frame": b"\x80\x04\x95" + struct.pack("<Q", 3) + b"N.N",
    "second pickle": pickle.dumps(1) + pickle.dumps(2),
    "unknown opcode": whole(b"\xff"),
    "protocol 9": b"\x80\x09N.",
    "empty stack": whole(b""),
    "too few items": whole(b"K\x01\x87"),
    "key without value": whole(b"}(K\x01u"),
    "unknown memo": whole(b"h\x05"),
    "huge text": whole(b"\x8d" + struct.pack("<Q", 1 << 60)),
    "huge bytes": whole(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "many copies": whole(
        LONG_TEXT
        + text("latin1")
        + b"\x86\x940"
        + name("_codecs", "encode")
        + b"\x940"
        + b"("
        + b"h\x02h\x01R" * 3000
        + b"t"
    ),
    "nested key": whole(b"}" + NESTED_TUPLES + b"K\x01s"),
    "wide nested key": whole(b"}" + b")" + b"2\x86" * 28 + b"K\x01s"),
    "nested item of a set": whole(call("builtins", "set", b"]" + NESTED_TUPLES + b"a")),
    "colliding keys": whole(
        b"}(" + b"".join(pickle.dumps(n * (2**61 - 1) << 64, 2)[2:-1] + b"N" for n in range(1, 9000)) + b"u"
    ),
}
