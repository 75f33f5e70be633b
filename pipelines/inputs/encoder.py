"""Encoding of pickled parts as `.npy`, `.safetensors` or `.json` while they are packed, so that no reader unpickles.

It happens part by part in the task that packs the shard, after the user's function if there is one. A pickle is opened
by the readers' own unpickler, which executes no code, so packing is as safe as reading. It is imported at the first
pickle, because it loads torch.
"""

import platform
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from dray.shards.codecs.unfit import UnfitError
from dray.shards.errors import CallError, InputError, RefusedError
from dray.shards.parts import AUTO, PICKLES, TARGETS, encoded_suffixes, is_pickled, stem_of

_GROWTH, _SMALL_BYTES = 64, 1 << 20  # an encoded part has at most _GROWTH times its pickle's bytes + _SMALL_BYTES

Encode = str | Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Encodes the pickled parts of samples. It is sent to every worker; make one by `Encoder.of`.

    Attributes:
        targets: Suffix -> "npy", "safetensors", "json" or "auto"; None: "auto" for every pickled part.
        allow: Full names that a pickle may use besides the safe list, sorted.
        allow_pickle: Whether pickles may run any code.
    """

    targets: Mapping[str, str] | None
    allow: tuple[str, ...] = ()
    allow_pickle: bool = False

    @classmethod
    def of(
        cls,
        encode: Encode | None,
        suffixes: Collection[str] | None,
        *,
        allow: Collection[str] = (),
        allow_pickle: bool = False,
    ) -> "Encoder | None":
        """Returns the encoder that the arguments of a build ask for; None if nothing is to be encoded.

        Args:
            encode: "auto", or suffix -> target format; None: nothing is encoded.
            suffixes: The parts of every sample; None where a function makes them.
            allow: Full names (`pkg.module.Class`) that a pickle may use besides the safe list.
            allow_pickle: Let pickles run any code: only for data that you made yourself.

        Raises:
            CallError: A target is unknown, no sample has a suffix, or it is not that of a pickle; two parts could get
                the same suffix; or names are allowed although nothing is unpickled.
        """
        if encode is None:
            if allow or allow_pickle:
                raise CallError(
                    "allow= and allow_pickle= are about the pickles that encode= opens: give encode= as well"
                )
            return None
        if allow:
            from dray.shards.codecs.pickles.unpickle import check_allow

            allow = check_allow(allow)
        encoder = cls(targets=_checked(encode), allow=tuple(sorted(allow)), allow_pickle=allow_pickle)
        if suffixes is not None:
            encoder._check_suffixes(suffixes)
        if allow_pickle:
            warnings.warn("allow_pickle=True: pickled parts run any code that they name", stacklevel=3)
        return encoder

    def _check_suffixes(self, suffixes: Collection[str]) -> None:
        if unknown := sorted(set(self.targets or ()) - set(suffixes)):
            raise CallError(f"encode= names {unknown[0]!r}: the samples have {', '.join(suffixes)}")
        names = [name.lower() for suffix in suffixes for name in self.outputs(suffix)]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise CallError(
                f"encode= could make two parts {twice[0]!r} of one sample: rename one of {', '.join(suffixes)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that a recipe records."""
        values = {
            "encode": AUTO if self.targets is None else dict(self.targets),
            "allow": list(self.allow),
            "allow_pickle": self.allow_pickle,
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_json(cls, recipe: Mapping[str, Any]) -> "Encoder | None":
        """Returns the encoder that a manifest's recipe records; None if nothing was encoded."""
        if "encode" not in recipe:
            return None
        targets = None if recipe["encode"] == AUTO else recipe["encode"]
        return cls(targets=targets, allow=tuple(recipe.get("allow", ())), allow_pickle="allow_pickle" in recipe)

    def outputs(self, suffix: str) -> tuple[str, ...]:
        """Returns the suffixes that a part may have once it is encoded: one, or several with "auto"."""
        return encoded_suffixes(suffix, self._target(suffix))

    def may_stay(self, suffix: str) -> bool:
        """Whether a stored part of that suffix is a pickle that "auto" could not encode."""
        return is_pickled(suffix) and self._target(suffix) == AUTO

    def __call__(self, parts: Mapping[str, bytes], stayed: Counter[str] | None = None) -> dict[str, bytes]:
        """Returns the parts of one sample, encoded, in their order, under their new suffixes.

        Args:
            parts: Suffix -> bytes.
            stayed: Counts the parts that stay pickles, by reason.

        Raises:
            InputError: A part cannot be encoded, or two get the same suffix; names the part and says what to do.
        """
        encoded: dict[str, bytes] = {}
        for suffix, data in parts.items():
            target = self._target(suffix)
            name, new = (suffix, data) if target is None else self._encoded(suffix, target, data, stayed)
            encoded[name] = new
        if len(parts) > 1 and len({name.lower() for name in encoded}) < len(parts):
            raise InputError(f"two of its parts {', '.join(parts)} became the same: rename one")
        return encoded

    def _target(self, suffix: str) -> str | None:
        """Returns the target format of a part; None if it stays as it is."""
        if self.targets is None:
            return AUTO if is_pickled(suffix) else None
        return self.targets.get(suffix)

    def _encoded(self, suffix: str, target: str, data: bytes, stayed: Counter[str] | None) -> tuple[str, bytes]:
        """Returns the new suffix and bytes of one pickled part; with "auto" the old ones if no format fits."""
        loads, formats = _tools()
        if target in ("npy", AUTO) and (npy := formats.pickle_as_npy(data)) is not None:
            return f"{stem_of(suffix)}npy", npy
        try:
            value = self._opened(loads, data)
            extension = formats.format_of(value) if target == AUTO else target
            encoded = formats.FORMATS[extension](value, _GROWTH * len(data) + _SMALL_BYTES)
        except (RefusedError, UnfitError) as exc:
            if missing := _missing_module(exc):
                raise InputError(
                    f"{suffix!r} needs the module {missing!r}, which is missing where it was opened "
                    f"({platform.node()}): install it there, or ship it with Ray's runtime_env"
                ) from exc
            if target == AUTO:
                if stayed is not None:
                    stayed[str(exc)] += 1
                return suffix, data
            raise InputError(
                f"{suffix!r} cannot become {target!r}: {exc}. What to do: "
                f"encode={{{suffix!r}: 'auto'}} keeps what fits no format as a pickle, or on_error='skip' leaves it out"
            ) from exc
        return stem_of(suffix) + extension, encoded

    def _opened(self, loads: Callable[..., Any], data: bytes) -> Any:
        try:
            return loads(data, allow=self.allow, allow_pickle=self.allow_pickle)
        except RefusedError:
            raise
        except Exception as exc:  # with allow_pickle the pickle's code runs
            raise RefusedError(f"its pickle fails: {type(exc).__name__}: {exc!s:.200}") from exc


@cache
def _tools() -> tuple[Callable[..., Any], ModuleType]:
    """Return the safe unpickler and the formats; both load torch."""
    from dray.shards.codecs import encode as formats
    from dray.shards.codecs.pickles.unpickle import loads

    return loads, formats


def _missing_module(exc: BaseException) -> str | None:
    """Returns the module that an allowed name needs and this process lacks; None if that is not the cause."""
    return exc.__cause__.name if isinstance(exc.__cause__, ModuleNotFoundError) else None


def _checked(encode: Encode) -> Mapping[str, str] | None:
    """Returns the targets, sorted; None for "auto" alone.

    Raises:
        CallError: A target is unknown, or its suffix is not that of a pickle.
    """
    if encode == AUTO:
        return None
    if isinstance(encode, str) or not encode:
        raise CallError(f'encode={encode!r}: expected "auto", or a dict such as {{"tensor.pyd": "npy"}}')
    for suffix, target in encode.items():
        if target not in (*TARGETS, AUTO):
            raise CallError(f"encode={{{suffix!r}: {target!r}}}: expected one of {', '.join((*TARGETS, AUTO))}")
        if not is_pickled(suffix):
            raise CallError(f"encode= names {suffix!r}, which is not a pickled part: those end in {', '.join(PICKLES)}")
    return dict(sorted(encode.items()))
