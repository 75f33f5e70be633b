"""Explains refused pickles: what the part really is and what to do. Nothing of the part is run."""

import json
import pickletools
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from dray.shards.codecs.pickles.compat import python_3_modules, python_3_names

MAX_OPCODES = 100_000  # maximum number that is searched for names
MAX_SEARCHED_BYTES = 64 << 20  # maximum of a pickle that is searched for names
MAX_LISTED_NAMES = 16  # maximum number of names to allow in a message

_AFTER_THE_END = "nothing after the end of the pickle"
_RUNS = "If you trust the data: "
_PYTHON_2 = {"STRING", "BINSTRING", "SHORT_BINSTRING", "INST", "OBJ"}  # opcodes that Python 3 does not write
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True, slots=True)
class _Family:
    """Values whose pickles use similar names, and how to convert them."""

    pattern: str  # matches the start of a full name
    what: str
    convert: str  # expression of `value` whose pickle is not refused; empty if there is none
    allowable: bool = True  # whether allowing the names is enough


_FAMILIES = (
    _Family(
        r"numpy\.ma\.",
        "a masked array",
        "{'data': value.filled(), 'mask': numpy.ma.getmaskarray(value)}",
        False,
    ),
    _Family(r"numpy\..*\brec(array|ord)$", "a record array", "numpy.array(value.tolist(), value.dtype.descr)", False),
    _Family(r"numpy\..*\b(matrix|memmap|chararray)$", "an array of a subclass", "numpy.asarray(value)", False),
    _Family(r"numpy\..*_stringdtype", "an array of StringDType", "numpy.array(value.tolist())", False),
    _Family(r"torch\._utils\._rebuild_qtensor", "a quantized tensor", "value.dequantize()", False),
    _Family(r"torch\._utils\._rebuild_sparse", "a sparse tensor", "value.to_dense()"),
    _Family(r"torch\._utils\._rebuild_nested", "a nested tensor", "list(value.unbind())"),
    _Family(
        r"torch\._tensor\._rebuild_from_type",
        "a tensor of a subclass",
        "value.detach().as_subclass(torch.Tensor)",
        False,
    ),
    _Family(r"torch\.nn\.modules\.", "a module", "value.state_dict()"),
    _Family(r"pandas\..*\b(DataFrame|Series)$", "a pandas table", "value.to_dict()"),
    _Family(r"scipy\.sparse\.", "a sparse matrix", "value.toarray()"),
    _Family(r"PIL\.", "an image", "numpy.asarray(value)"),
    _Family(r"cupy\.", "an array of cupy", "cupy.asnumpy(value)"),
    _Family(r"(jax|jaxlib|tensorflow|mlx)\.", "an array of another library", "numpy.asarray(value)"),
    _Family(r"cloudpickle\.", "code that cloudpickle wrote", "", False),
    _Family(r"__main__\.", "of a class of the script that wrote it: define that in a module that readers have", ""),
)
_FOREIGN_PICKLES = {  # first part of a name -> decoder for a format that extends pickle
    "joblib": "lambda data: joblib.load(io.BytesIO(data))",
    "dill": "lambda data: dill.loads(data)",
}


def refused_name(name: str, allow: Sequence[str]) -> str:
    """Returns the message for a pickle that names something outside the safe list.

    Args:
        name: The name.
        allow: All names in the pickle that would have to be allowed; empty if that would not help.
    """
    refused = f"pickle names {json.dumps(name[:200])[1:-1]}, which is not on the safe list; nothing of it ran. "
    if decoder := _FOREIGN_PICKLES.get(name.partition(".")[0]):
        return f"{refused}{_RUNS}decoders={{SUFFIX: {decoder}}}; or write the value by pickle.dumps instead"
    names = (name, *allow)
    family = next((family for family in _FAMILIES if any(re.match(family.pattern, one) for one in names)), None)
    listed = f"allow={json.dumps([one[:200] for one in allow])}, or "
    if not allow or len(allow) > MAX_LISTED_NAMES or (family is not None and not family.allowable):
        listed = ""
    trusted = f"{_RUNS}{listed}allow_pickle=True for everything"
    if family is None:
        return refused + trusted
    convert = f": pickle {family.convert} instead" if family.convert else ""
    return f"{refused}It is {family.what}{convert}. {trusted}"


def refused_otherwise(problem: str, data: bytes | memoryview) -> str:
    """Returns the message for a part that is not a pickle, is damaged, or is unlike those of pickle.dumps."""
    if (found := foreign_file(data)) is not None:
        return found
    opcodes = _opcodes(data)
    if not _PYTHON_2.isdisjoint(opcodes):
        return (
            f"{problem}; Python 2 wrote it: decoders={{SUFFIX: lambda data: pickle.loads(data, encoding='latin1')}} if "
            "you trust the data, or write it again with Python 3"
        )
    if data[:1] == b"\x80" and (not opcodes or opcodes[-1] != "STOP") and len(opcodes) < MAX_OPCODES:
        return f"{problem}; the pickle is damaged or cut short: {len(data)} bytes without its end; write it again"
    if "NEXT_BUFFER" in opcodes:
        return f"{problem}; its buffers were pickled apart: write it again by pickle.dumps without buffer_callback"
    if "PERSID" in opcodes or "BINPERSID" in opcodes:
        return f"{problem}; a persistent_id wrote it: write it again by pickle.dumps"
    if problem.startswith("malformed"):
        return f"{problem}; not a pickle, or a damaged one: write it again, or read it by decoders={{SUFFIX: function}}"
    if _AFTER_THE_END in problem:
        return f"{problem}: pickle one value, such as a list of all, and write nothing behind it"
    return f"{problem}. Write the value again as plain arrays and containers by pickle.dumps. {_RUNS}allow_pickle=True"


# ---- other files ----

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle in a file of torch.save's old format: a number."""

_KINDS: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what it is, the suffix that such files need
    (rb"PK\x03\x04.{26,200}/data\.pkl", "a file of torch.save", "pth"),
    (re.escape(TORCH_MAGIC), "a file of torch.save", "pth"),
    (rb"PK\x03\x04.{26,200}\.npy", "a file of numpy.savez", "npz"),
    (rb"\x93NUMPY", "a file of numpy.save", "npy"),
    (rb".{8}\{\"", "a file of safetensors", "safetensors"),
    (rb"\x89PNG\r\n", "an image", "png"),
    (rb"\xff\xd8\xff", "an image", "jpg"),
    (rb"\x1f\x8b", "compressed by gzip", "pyd.gz"),
)
_DECODED: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what it is, a decoder
    (rb"BZh[1-9]", "compressed by bz2", "unpickle.loads(bz2.decompress(data))"),
    (rb"\xfd7zXZ", "compressed by lzma", "unpickle.loads(lzma.decompress(data))"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstandard", "unpickle.loads(zstandard.decompress(data))"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4", "unpickle.loads(lz4.frame.decompress(data))"),
    (rb"\x78[\x01\x5e\x9c\xda]", "compressed by zlib", "unpickle.loads(zlib.decompress(data))"),
    (rb"PAR1", "a file of Parquet", "pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()"),
    (rb"\x89HDF\r\n", "a file of HDF5", "h5py.File(io.BytesIO(data))"),
)


def foreign_file(data: bytes | memoryview) -> str | None:
    """Returns what a file that is not a pickle is, by its first bytes, and what to do; None if unknown."""
    head = bytes(data[:4096])
    if not head:
        return "it is empty, and a pickle is not: write it again, or leave the sample out by on_error='skip'"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: git lfs pull"
    for magic, what, suffix in _KINDS:
        if re.match(magic, head, re.DOTALL):
            return f"it is {what}, not a pickle: give such files the suffix {suffix}, and build again"
    for magic, what, decoder in _DECODED:
        if re.match(magic, head, re.DOTALL):
            where = ", with dray.shards.codecs.pickles.unpickle" if "unpickle." in decoder else ""
            return f"it is {what}, not a pickle: read such files by decoders={{SUFFIX: lambda data: {decoder}}}{where}"
    text = _text_suffix(head)
    return None if text is None else f"it is text, not a pickle: give such files the suffix {text}, and build again"


def _text_suffix(head: bytes) -> str | None:
    """Returns the suffix for a text file; None for anything else, or a pickle of protocol 0."""
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
    if not text.isprintable() and re.search(r"[^\s\x20-\U0010ffff]|[\x00-\x08\x0e-\x1f\x7f]", text):
        return None
    if re.fullmatch(r"-?\d+", text):
        return "cls"
    if text[:1] in ("{", "[", '"') or text in ("true", "false", "null"):
        return "json"
    return None if text.endswith(".") and "\n" in text else "txt"


# ---- a look at the opcodes ----


def _opcodes(data: bytes | memoryview) -> list[str]:
    """Returns the names of the opcodes before the first damaged one."""
    found: list[str] = []
    with suppress(Exception):  # any damage: the pickle was refused already
        found.extend(
            opcode.name for opcode, _, _ in islice(pickletools.genops(bytes(data[:MAX_SEARCHED_BYTES])), MAX_OPCODES)
        )
    return found


def names_in(data: bytes | memoryview) -> list[str]:
    """Returns the full names that a pickle imports, in order, up to any damage."""
    found: list[str] = []
    strings = ["", ""]  # the last two that were pushed
    memo: dict[int, str] = {}
    protocol, top = 0, ""
    with suppress(Exception):  # any damage: the pickle was refused already
        for opcode, argument, _ in islice(pickletools.genops(bytes(data[:MAX_SEARCHED_BYTES])), MAX_OPCODES):
            name, given = opcode.name, cast(Any, argument)
            if name == "PROTO":
                protocol = given
            elif name == "MEMOIZE" or name in _PUT:
                memo[len(memo) if name == "MEMOIZE" else given] = top
            elif name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                module, attribute = strings if name == "STACK_GLOBAL" else given.split(" ", 1)
                found.append(".".join(python_3_name(module, attribute, protocol)))
                top = ""
            else:
                top = memo.get(given, "") if name in _GET else given if type(given) is str else ""
                strings = [strings[-1], top]
    return found


def python_3_name(module: str, name: str, protocol: int) -> tuple[str, str]:
    """Returns the name in Python 3: pickles before protocol 3 may use those of Python 2."""
    if protocol >= 3:
        return module, name
    return python_3_names.get((module, name), (python_3_modules.get(module, module), name))
