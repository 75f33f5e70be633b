"""A refusal says what the part is and what to do, and its advice works."""

import ast
import bz2
import collections
import dataclasses
import datetime
import decimal
import enum
import gzip
import io
import json
import lzma
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import scipy.sparse
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from dray.pipelines import pickles_to_tars
from dray.shards import InputError, RefusedError, Snapshot
from dray.shards.codecs.decode import decode_part
from dray.shards.codecs.pickles import unpickle
from tests.conftest import Dray

SUFFIX = "pyd"


@dataclasses.dataclass
class Point:
    """A class of the user's."""

    x: int


class Color(enum.Enum):
    """Another one."""

    RED = 1


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    """The bytes that a function writes to a file."""
    file = io.BytesIO()
    save(file)
    return file.getvalue()


RECORDS = numpy.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f4")])
VALUES: dict[str, Callable[[], Any]] = {  # by what the message calls it; "" if it only has the name
    "a masked array": lambda: numpy.ma.masked_array([1.0, 2.0], [False, True]),
    "an array of a subclass": lambda: numpy.asmatrix(numpy.ones((1, 2))),
    "an array of a subclass, char": lambda: numpy.char.array(["a", "b"]),
    "a record array": lambda: RECORDS.view(numpy.recarray),
    "a record array, one": lambda: RECORDS.view(numpy.recarray)[0],
    "a sparse tensor": lambda: torch.eye(2).to_sparse(),
    "a sparse tensor, csr": lambda: torch.eye(2).to_sparse_csr(),
    "a tensor of a subclass": lambda: torch.nn.Buffer(torch.ones(2)),
    "a module": lambda: torch.nn.Linear(2, 2),
    "a pandas table": lambda: pandas.DataFrame({"a": [1, 2]}),
    "a pandas table, column": lambda: pandas.Series([1, 2]),
    "a sparse matrix": lambda: scipy.sparse.eye(2).tocsr(),
    "an image": lambda: Image.new("RGB", (2, 2)),
    "": lambda: Point(1),
    ", enum": lambda: Color.RED,
    ", time": lambda: datetime.datetime(2026, 1, 2),
    ", decimal": lambda: decimal.Decimal("1.5"),
    ", path": lambda: Path("a"),
    ", defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    ", polynomial": lambda: numpy.polynomial.Polynomial([1, 2]),
    ", generator": lambda: numpy.random.default_rng(0),
    ", timestamp": lambda: pandas.Timestamp("2026-01-02"),
    ", array of objects": lambda: numpy.array([Point(1)], dtype=object),
    ", nested": lambda: {"a": [Point(1), decimal.Decimal(2)]},
}
if hasattr(numpy.dtypes, "StringDType"):
    VALUES["an array of StringDType"] = lambda: numpy.array(["a", "bb"], dtype=numpy.dtypes.StringDType())

NAMES = globals() | {"unpickle": unpickle}  # for the expressions in messages
PICKLED = pickle.dumps([1, "two"])
FILES: dict[str, bytes] = {  # that are not pickles, by what the message calls them
    "a file of torch.save": saved(lambda file: torch.save(torch.ones(3), file)),
    "a file of torch.save, old": saved(
        lambda file: torch.save(torch.ones(3), file, _use_new_zipfile_serialization=False)
    ),
    "a file of numpy.save": saved(lambda file: numpy.save(file, numpy.ones(3))),
    "a file of numpy.savez": saved(lambda file: numpy.savez(file, a=numpy.ones(3))),
    "a file of safetensors": save_safetensors({"a": torch.ones(3)}),
    "an image": saved(lambda file: Image.new("RGB", (2, 2)).save(file, "png")),
    "an image, jpg": saved(lambda file: Image.new("RGB", (2, 2)).save(file, "jpeg")),
    "compressed by gzip": gzip.compress(PICKLED),
    "compressed by bz2": bz2.compress(PICKLED),
    "compressed by lzma": lzma.compress(PICKLED),
    "compressed by zlib": zlib.compress(PICKLED),
    "a file of Parquet": saved(lambda file: pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), file)),
    "text": b"hello, world\n",
    "text, json": b'{"a": [1, 2]}',
    "text, list": b"[1, 2]\n",
    "text, number": b"17\n",
}
JOBLIB = saved(lambda file: joblib.dump({"a": numpy.ones(3)}, file))
PYTHON_2 = {
    "text": b"\x80\x02U\x03a\xff\xfeq\x00.",
    "array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01"
    b"K\x02\x85cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08\x01\x00\x00\x00\xff\x00\x00\x00tb.",
}


def refusal(data: bytes, **options: Any) -> str:
    """The message for a part."""
    with pytest.raises(RefusedError) as refused:
        decode_part(SUFFIX, data, **options)
    return str(refused.value)


def follow(message: str, data: bytes, value: Any = None) -> list[Any]:
    """The values from each piece of advice in a message: at least one, and none is refused."""
    found = [
        decode_part(SUFFIX, pickle.dumps(eval(expression, NAMES | {"value": value})))
        for expression in re.findall(r": pickle (.*?) instead", message)
    ]
    found += [
        decode_part(SUFFIX, data, allow=ast.literal_eval(names)) for names in re.findall(r"allow=(\[.*?\])", message)
    ]
    if "allow_pickle=True" in message:
        found.append(decode_part(SUFFIX, data, allow_pickle=True))
    found += [decode_part(suffix, data) for suffix in re.findall(r"the suffix (\S+?),", message)]
    for decoder in re.findall(r"decoders=\{SUFFIX: (lambda data: .*?)\}", message):
        found.append(decode_part(SUFFIX, data, decoders={SUFFIX: eval(decoder, NAMES)}))
    assert found, message
    return found


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::PendingDeprecationWarning"
)  # torch and numpy warn about some
@pytest.mark.parametrize("what", VALUES)
def test_every_way_out_that_a_refused_pickle_names_works(what: str) -> None:
    """Another value to pickle, all names to allow at once, or allow_pickle."""
    value = VALUES[what]()
    data = pickle.dumps(value)
    message = refusal(data)
    assert re.match(r"pickle names [\w.]+, which is not on the safe list; nothing of it ran\. ", message)
    assert f"It is {what.partition(',')[0]}: pickle " in message or what.startswith(",") or not what
    follow(message, data, value)


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_file_of_another_format_is_named(what: str, allow_pickle: bool) -> None:
    """With the suffix that it needs, or a decoder; also with allow_pickle."""
    message = refusal(FILES[what], allow_pickle=allow_pickle)
    assert message.startswith(f"it is {what.partition(',')[0]}, not a pickle: ")
    (found,) = follow(message, FILES[what])
    assert found is not FILES[what]  # the bytes as they are: no decoder knew them


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_tensor_is_refused_with_a_way_out() -> None:
    """Only torch reads its storage, by running the pickle."""
    value = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    data = pickle.dumps(value)
    follow(refusal(data), data, value)


@pytest.mark.parametrize("data", [JOBLIB, saved(lambda file: joblib.dump([numpy.ones(2)], file))])
def test_a_file_of_joblib_names_its_decoder(data: bytes) -> None:
    """It is a pickle interleaved with arrays, which `pickle` cannot read at all."""
    message = refusal(data)
    assert "allow" not in message
    assert len(follow(message, data)) == 1


@pytest.mark.parametrize("what", PYTHON_2)
def test_a_pickle_of_python_2_names_the_encoding(what: str) -> None:
    """The encoding that such pickles need."""
    message = refusal(PYTHON_2[what])
    assert "Python 2 wrote it" in message
    assert len(follow(message, PYTHON_2[what])) == 1


def test_plain_values_of_python_2_are_read() -> None:
    """Protocol 0: nothing to advise."""
    assert decode_part(SUFFIX, b"(lp0\nI1\naL5L\naVabc\np1\naS'def'\na.") == [1, 5, "abc", "def"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty, and a pickle is not: write it again, or leave the sample out by on_error='skip'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "a pointer of Git LFS, .*: git lfs pull"),
        (pickle.dumps(list(range(100)))[:-9], "damaged or cut short: 207 bytes without its end; write it again"),
        (PICKLED + PICKLED, "pickle one value, such as a list of all"),
        (bytes(100), r"not a pickle, or a damaged one: write it again, or read it by decoders=\{SUFFIX: function\}"),
        (b"(i__main__\nOld\n.", "__main__.Old is a class of Python 2's old style; Python 2 wrote it"),
        (b"ccupy._core.core\narray\n.", "It is an array of cupy: pickle cupy.asnumpy"),
        (b"cdill._dill\n_load_type\n.", r"decoders=\{SUFFIX: lambda data: dill.loads\(data\)\}"),
        (
            b"ccloudpickle.cloudpickle\n_make_function\n.",
            "It is code that cloudpickle wrote. If you trust the data: allow",
        ),
        (b"c__main__\nPoint\n.", "of a class of the script that wrote it: define that in a module that readers have"),
        (
            pickle.dumps(numpy.zeros(2, [("a", "i4", (2,))])),
            "Write the value again as plain arrays .*allow_pickle=True",
        ),
        (pickle.dumps(numpy.ones(3), 5, buffer_callback=lambda _: None), "pickled apart: write it again"),
    ],
)
def test_a_part_that_cannot_be_read_says_why_and_what_to_do(data: bytes, message: str) -> None:
    """Advice that a test cannot run."""
    assert re.search(message, refusal(data))


def test_a_name_that_is_allowed_and_missing_is_named() -> None:
    """Not as a malformed pickle."""
    data = b"\x80\x04\x8c\x07missing\x8c\x05Thing\x93."
    assert refusal(data, allow=["missing.Thing"]).startswith(
        "missing.Thing is allowed, and cannot be imported here (No mod"
    )
    data = b"\x80\x04\x8c\x04json\x8c\x05Thing\x93."
    assert "json.Thing is allowed, and cannot be imported here" in refusal(data, allow=["json.Thing"])


def test_the_way_out_of_a_build_works(tmp_path: Path, dray: Dray) -> None:
    """Keywords in Python, options on the command line."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.x.pyd").write_bytes(pickle.dumps({"when": datetime.date(2026, 1, 2), "p": [1.5]}))
    with pytest.raises(
        InputError, match=r"'x\.pyd' cannot become 'json': .*datetime.date.*allow=\[\"datetime.date\"\]"
    ):
        pickles_to_tars(
            tmp_path / "in", ["a"], "x.pyd", tmp_path / "out", "p", encode={"x.pyd": "json"}, progress=False
        )
    words = ["build", tmp_path / "in", tmp_path / "out", "--suffix", "x.pyd", "--encode", "x.pyd=json"]
    done = dray(*words)
    assert "allow=" not in done.err
    assert "If you trust the data: --allow datetime.date, or --allow-pickle for everything" in done.err
    (auto,) = re.findall(r"What to do: --encode (\S+) keeps", done.err)
    assert dray(*words[:-1], auto).code == 0
    assert Snapshot.open(tmp_path / "out").read("a").keys() == {"x.pyd"}
    assert json.loads(json.dumps(auto)) == "x.pyd=auto"
