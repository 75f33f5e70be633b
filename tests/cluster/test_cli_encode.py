"""Encoding on the command line: build, plan, ls, show, verify."""

import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dray.shards import Snapshot
from tests.conftest import Dray, Inputs, Outcome

SUFFIXES = ("tensor.pyd", "label.pyd")


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """12 tensors with labels: one is a tuple, the others are numbers."""
    inputs = Inputs(tmp_path / "in", [f"s{number:02d}" for number in range(12)], SUFFIXES)
    inputs.folder.mkdir()
    for number, name in enumerate(inputs.names):
        inputs.path(name, "tensor.pyd").write_bytes(pickle.dumps(torch.full((2,), float(number))))
        inputs.path(name, "label.pyd").write_bytes(pickle.dumps(number if number else (0,)))
    return inputs


Run = Callable[..., Outcome]


@pytest.fixture
def run(dray: Dray, inputs: Inputs, tmp_path: Path) -> Run:
    """Runs a command on `in` and `out`, with more options."""
    names = [word for suffix in SUFFIXES for word in ("--suffix", suffix)]
    return lambda command, *more: dray(command, inputs.folder, tmp_path / "out", *names, "--shards", 2, *more)


def ls(dray: Dray, folder: Path) -> tuple[str, dict[str, object]]:
    (facts,) = json.loads(dray("ls", folder, "--json").out)
    return dray("ls", folder).out, facts


def test_ls_shows_what_was_encoded_and_which_parts_are_still_pickles(dray: Dray, run: Run, tmp_path: Path) -> None:
    """Text and JSON come from the manifest alone."""
    assert run("build", "--encode", "auto").code == 0
    text, facts = ls(dray, tmp_path / "out")
    assert "  parts   tensor.npy (encoded from tensor.pyd), label.json, label.pyd (encoded from label.pyd)\n" in text
    assert "  pickles: label.pyd (1 of 12 samples)\n" in text
    assert facts["parts"] == {"tensor.npy": 12, "label.pyd": 1, "label.json": 11}
    assert facts["pickles"] == {"label.pyd": 1}


def test_a_dataset_without_pickles_says_so(dray: Dray, run: Run, inputs: Inputs, tmp_path: Path) -> None:
    """`pickles: none` means that nothing is unpickled at training time."""
    inputs.path("s00", "label.pyd").write_bytes(pickle.dumps(0))
    run("build", "--encode", "tensor.pyd=npy", "--encode", "label.pyd=json")
    text, facts = ls(dray, tmp_path / "out")
    assert "  parts   tensor.npy (encoded from tensor.pyd), label.json (encoded from label.pyd)\n" in text
    assert "  pickles: none\n" in text
    assert facts["pickles"] == {}


def test_a_dataset_that_is_not_encoded_shows_its_pickles(dray: Dray, run: Run, tmp_path: Path) -> None:
    """The counts follow from its recipe."""
    run("build")
    text, facts = ls(dray, tmp_path / "out")
    assert "  parts   tensor.pyd, label.pyd\n" in text
    assert "  pickles: tensor.pyd (12 of 12 samples), label.pyd (12 of 12 samples)\n" in text
    assert facts["parts"] == {"tensor.pyd": 12, "label.pyd": 12}


def test_a_plan_says_that_the_encoding_changed(run: Run) -> None:
    """It shows the old and the new encoding; the same options plan nothing."""
    run("build", "--encode", "auto")
    assert "encode was 'auto', is {'tensor.pyd': 'npy'}" in run("plan", "--encode", "tensor.pyd=npy").out
    assert "encode was 'auto', is None" in run("plan").out
    assert "nothing to do" in run("plan", "--encode", "auto").out


def test_show_decodes_what_was_encoded(dray: Dray, run: Run, tmp_path: Path) -> None:
    """It shows the value of each part."""
    run("build", "--encode", "auto")
    shown = dray("show", tmp_path / "out", "s07").out
    assert "  tensor.npy: 136 bytes" in shown
    assert "array float32 (2,)" in shown
    assert "label.json" in shown


def test_a_value_that_does_not_fit_is_one_line_with_a_remedy(run: Run, inputs: Inputs) -> None:
    """The error names part, key and type."""
    done = run("build", "--encode", "label.pyd=json")
    assert done.code == 1
    assert (
        f"sample 's00' of file://{inputs.folder}: 'label.pyd' cannot become 'json': tuple would come back"
        in done.err.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encode", "tensor.pyd"], "--encode tensor.pyd: expected auto alone, or SUFFIX=FORMAT"),
        (["--encode", "auto", "--encode", "tensor.pyd=npy"], "--encode auto: expected auto alone"),
        (["--encode", "tensor.pyd=jpg"], "--encode tensor.pyd=jpg: expected one of npy, safetensors, json, auto"),
        (["--encode", "x.pyd=npy"], "error: --encode names 'x.pyd': the samples have tensor.pyd, label.pyd"),
        (
            ["--allow", "a.B"],
            "--allow and --allow-pickle are about the pickles that --encode opens: give --encode as well",
        ),
    ],
)
def test_wrong_options_are_one_line(run: Run, words: list[str], message: str) -> None:
    """Build and plan print the same error."""
    for command in ("build", "plan"):
        assert message in run(command, *words).err


def test_the_repair_command_keeps_the_encoding(dray: Dray, run: Run, tmp_path: Path) -> None:
    """A damaged shard is packed again with the same recipe, and the others are kept."""
    out = tmp_path / "out"
    run("build", "--encode", "auto", "--allow", "fractions.Fraction")
    (out / "wdshards-000001.tar").unlink()
    (facts,) = json.loads(dray("verify", out, "--json").out)
    rebuild = shlex.split(facts["rebuild"])
    assert "1 packed, 1 reused" in dray(*rebuild[1:]).out
    assert Snapshot.open(out).manifest.recipe["allow"] == ["fractions.Fraction"]
