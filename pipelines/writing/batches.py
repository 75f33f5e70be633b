"""The user's function that makes samples of batches of inputs, in this process or in a worker."""

import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle

from dray.pipelines.inputs.seeding import RNG, rng_of, takes_rng
from dray.pipelines.inputs.transform import pickled, unfit_node
from dray.pipelines.writing.samples import KEY, as_sample
from dray.shards.errors import CallError, DamagedError, InputError, RefusedError
from dray.shards.layout import some

if TYPE_CHECKING:
    from dray.shards.codecs.decode import Decoder

SOURCE = "__source__"
BatchFunction = Callable[..., Iterable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who calls the function: this process, or workers on Ray.

    Attributes:
        batch_size: Number of inputs in a batch.
        concurrency: Maximum number of workers; None: one for a class, else as many as the cluster has room for.
        num_cpus: CPUs of each; None: 1.
        num_gpus: GPUs of each; None: none.
    """

    batch_size: int = 64
    concurrency: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None

    def check_in_process(self) -> None:
        """Check that nothing is asked for that only workers on Ray have.

        Raises:
            CallError: It is; says how to use Ray.
        """
        wanted = {"concurrency": self.concurrency, "num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        for name, value in wanted.items():
            if value is not None:
                raise CallError(f"{name}={value} is of workers on Ray: give address=, such as address='local', as well")


class Input(NamedTuple):
    """An input of a batch: the key of the source, and its parts as bytes by suffix."""

    key: str
    parts: Mapping[str, bytes]


class Made(NamedTuple):
    """A sample that was made: the place of its source in the batch, its key, and its parts as bytes by suffix."""

    place: int
    key: str
    parts: dict[str, bytes]


class BatchTransform:
    """A function `f(samples) -> samples`, or a class that is constructed once in each process and then called so.

    Each sample is a dict of `__key__`, `__source__` and the decoded parts by suffix. A function with a parameter `rng`
    also gets a list of random generators, one a sample, which depend on the seed and the key of the sample alone.

    Args:
        function: The function or class; or its name as `pkg.mod:name`, which every worker imports.
        seed: Seed of the random generators.
        allow: Full names that pickles may use besides the safe list.

    Attributes:
        name: Name of the function, for recipes and messages.
        renamed: Field -> suffix, where a field was stored under another suffix than its name.

    Raises:
        CallError: It cannot be called, or its name has another form.
    """

    def __init__(self, function: BatchFunction | str, *, seed: int = 0, allow: Collection[str] = ()) -> None:
        if not (isinstance(function, str) or callable(function)):
            raise CallError(f"transform={function!r:.80}: expected a function, a class or its name as 'pkg.mod:name'")
        if isinstance(function, str) and not all(function.partition(":")):
            raise CallError(f"transform={function!r:.200}: expected a name of the form 'pkg.mod:name'")
        self.name = function if isinstance(function, str) else _name_of(function)
        self.renamed: dict[str, str] = {}
        self._given: Any = function
        self._called: Any = None
        self._seed, self._allow = seed, allow

    def recipe(self, suffixes: Sequence[str], version: str) -> dict[str, Any]:
        """Returns the recipe of what it makes, as text alone: nothing of it is imported when a dataset is read."""
        return {"suffixes": list(suffixes), "transform": version, "function": self.name, "seed": self._seed}

    @property
    def is_class(self) -> bool:
        """Whether it is a class, which is constructed once in each process."""
        return inspect.isclass(self._loaded())

    @cached_property
    def _decoder(self) -> "Decoder":
        from dray.shards.codecs.decode import Decoder  # loads torch

        return Decoder(allow=self._allow)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_called": None}
        state.pop("_decoder", None)
        if isinstance(self._given, str):
            return state
        advice = "open files and connections in a class's __init__, which runs in each worker"
        return state | {"_given": pickled(self._given, self.name, advice)}

    def __call__(self, inputs: Sequence[Input]) -> list[Made]:
        """Returns the samples that the function makes of a batch, those of each source together, in its order.

        Raises:
            ClusterError: The function cannot be loaded here, or needs a module that is missing: the node is at fault.
            InputError: A part cannot be decoded; the function raised, or returned a sample that cannot be stored or
                whose source is not known.
        """
        samples = [self._decoded(one) for one in inputs]
        called = self._ready(inputs[0].key)
        places = {one.key: place for place, one in enumerate(inputs)}
        more = {RNG: [rng_of(self._seed, one.key) for one in inputs]} if takes_rng(called) else {}
        try:
            returned = list(called(samples, **more))
        except ImportError as exc:
            raise unfit_node(self.name, inputs[0].key, exc) from exc
        except Exception as exc:
            keys = some([one.key for one in inputs])
            raise InputError(f"{self.name} failed for {keys}: {type(exc).__name__}: {exc}") from exc
        made = [self._made(sample, places) for sample in returned]
        return sorted(made, key=lambda sample: sample.place)

    def _decoded(self, one: Input) -> dict[str, Any]:
        sample: dict[str, Any] = {KEY: one.key, SOURCE: one.key}
        for suffix, data in one.parts.items():
            try:
                sample[suffix] = self._decoder.part(suffix, data)
            except (DamagedError, RefusedError) as exc:
                raise InputError(exc.problem, key=one.key, suffix=suffix) from exc
        return sample

    def _made(self, sample: Any, places: Mapping[str, int]) -> Made:
        if not isinstance(sample, Mapping):
            raise InputError(f"{self.name} returned {sample!r:.80}: expected dicts of {KEY!r} and values by suffix")
        fields = dict(sample)
        source = fields.pop(SOURCE, fields.get(KEY)) if len(places) > 1 or SOURCE in fields else next(iter(places))
        if source not in places:
            raise InputError(
                f"{self.name} returned a sample with the {KEY} {fields.get(KEY)!r:.200}, which is of no input of its "
                f"batch: give it {SOURCE!r}, the key of the input that it was made of"
            )
        if not fields.keys() - {KEY}:
            raise InputError(f"{self.name} returned a sample that has no part: leave it out instead", key=source)
        try:
            given = as_sample(fields, source, keep_pickles=False, renamed=self.renamed)
        except InputError as exc:
            raise InputError(f"{self.name} returned what cannot be stored: {exc.problem}", key=exc.key) from exc
        return Made(places[source], given.key, given.parts)

    def _ready(self, key: str) -> Any:
        """Returns what is called: the function, or the instance of the class."""
        if self._called is None:
            loaded = self._loaded(key)
            try:
                self._called = loaded() if inspect.isclass(loaded) else loaded
            except ImportError as exc:
                raise unfit_node(self.name, key, exc) from exc
            except Exception as exc:
                raise CallError(f"{self.name}() failed: {type(exc).__name__}: {exc}") from exc
        return self._called

    def _loaded(self, key: str = "") -> Any:
        given = self._given
        if not isinstance(given, str | bytes):
            return given
        try:
            return cloudpickle.loads(given) if isinstance(given, bytes) else _import(given)
        except Exception as exc:
            raise unfit_node(self.name, key, exc) from exc


def _name_of(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _import(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def in_batches(inputs: Iterable[Input], size: int) -> Iterator[list[Input]]:
    """Yields inputs in lists of `size`; the last one may be shorter."""
    batch: list[Input] = []
    for one in inputs:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
