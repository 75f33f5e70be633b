"""Words that the field does not use stay out of source, docs and tests."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = {  # what must not occur, as a whole word or phrase in any case -> what to write
    r"told": "given, said, reported, num_samples",
    r"so many": "the number: 'number of ...', 'at most ...'",
    r"(lies|lie|lay) there": "exists, is stored",
    r"anew": "again",
    r"for ever": "indefinitely, without limit",
    r"what becomes of": "how ... is handled, what happens to",
    r"mend|mends|mended|mending": "repair",
    r"of no kind": "invalid",
    r"found out": "detected, resolved",
    r"works? out|worked out|working out|work_out": "compute, plan, resolve, survey",
    r"at a loss": "not known",
    r"waited for neither": "a sentence with an active verb",
    r"with the same words": "with the same arguments",
}
NAMES = {  # case counts
    r"WILD|TAME|LONE": "UNKNOWN, KNOWN_NAMES, SINGLE_ARRAY",
    r"Patience|patience": "Watchdog, timeout",
    r"Shaping": "Collation",
    r"Tally": "FeedCount",
    r"Wanted": "BuildRequest",
}
PATTERNS = [(re.compile(rf"(?<![A-Za-z])({words})(?![A-Za-z])", re.IGNORECASE), use) for words, use in WORDS.items()]
PATTERNS += [(re.compile(rf"\b({names})\b"), use) for names, use in NAMES.items()]
TEXTS = {".py", ".pyi", ".c", ".md", ".toml", ".svg", ""}
EXEMPT = {"tests/repo/test_words.py", "LICENSE", "NOTICE"}


def texts() -> list[Path]:
    """All files of the project that people read."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):  # a source package, not a checkout
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    names = [name for name in names if name not in EXEMPT and not name.startswith(".venv")]
    return [path for name in names if (path := ROOT / name).suffix in TEXTS and path.is_file()]


def test_no_file_uses_a_word_that_the_field_does_not() -> None:
    """The message says where, and what to write."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word[0]!r} -> {use}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for pattern, use in PATTERNS
        for word in pattern.finditer(line)
    ]
    assert not found, "\n".join(found)
