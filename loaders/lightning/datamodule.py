"""Lightning DataModules over WebDataset shards: the calls of NVIDIA's bionemo-webdatamodule."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from dray.loaders.lightning.epoch_loader import EpochLoader
from dray.loaders.lightning.exact_datamodule import ExactDataModule
from dray.loaders.split import Split, by_split
from dray.loaders.webloader.keywords import KWARGS_WDS, KWARGS_WLD, check
from dray.loaders.webloader.open_split import OpenSplit, open_split
from dray.shards.arguments import as_int
from dray.shards.codecs.decode import Decoder, Decoders
from dray.shards.layout import check_suffixes
from dray.shards.reading.suffixes import Missing
from dray.shards.snapshot import DEFAULT_PREFIX
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.urls import check_distinct, normal_url

Pipe = Callable[[Iterable[Any]], Iterator[Any]]
Pipeline = Pipe | Iterable[Pipe]
Calls = Sequence[tuple[str, Mapping[str, Any]]]

_SPLITS_OF_STAGE = {
    "fit": (Split.train, Split.val),
    "validate": (Split.val,),
    "test": (Split.test,),
    "predict": (Split.test,),
}


class WebDataModule(ExactDataModule):
    """Streams the shards of each split to a Lightning Trainer.

    `fit` needs the split train, and validates where there is val; `validate` needs val, `test` and `predict` test. In
    every dictionary a split may be named by a string (`"train"`), and its value may be missing or None, except that
    `n_samples` and `dirs_tars_wds` must name the same splits.

    Args:
        n_samples: Split -> its number of samples; None: as the dataset's snapshot tells.
        suffix_keys_wds: The parts of a sample that are wanted, one suffix or several, compared without case: a sample
            reaches the pipelines as a tuple of their decoded values. The end of a suffix is enough ("pyd" for
            "tensor.pyd"); an encoded part has several names, see `ShardLoader`.
        dirs_tars_wds: Split -> its dataset's directory, a path or an object-storage URL.
        global_batch_size: Samples a step over all ranks. An epoch of a loader is ceil(n_samples / global_batch_size)
            of what the last pipeline yields, going on into the next pass where the data end. None: an epoch is one
            pass, and the loader has no length. No batching is done here: it is the pipelines' to do.
        prefix_tars_wds: The prefix of the datasets.
        pipeline_wds: Split -> a generator function over samples, or several in a row; run by the workers.
        pipeline_prebatch_wld: Split -> the same over what the workers yield; run by the training process.
        kwargs_wds: Split -> keyword arguments of `webdataset.WebDataset`.
        kwargs_wld: Split -> keyword arguments of `webdataset.WebLoader`, such as `num_workers`.
        invoke_wds: Split -> [(method, keyword arguments), ...], called on the dataset last.
        invoke_wld: Split -> the same, called on the loader last.
        missing: What happens to a sample that lacks one of these parts: "error" names it; "none" makes its value None.
        storage_options: Of `dirs_tars_wds`: see `dray.shards.Store`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use besides the safe list.
        allow_pickle: Let pickled parts run any code that they name.
        decoders: Functions of your own by suffix, from a part's bytes to its value: `{"wav": read_wav}`.

    Raises:
        RuntimeError: `n_samples` and `dirs_tars_wds` name different splits.
        CallError: A dictionary names something that is no split, or an unknown keyword.
    """

    def __init__(
        self,
        n_samples: Mapping[Split | str, int | None] | None,
        suffix_keys_wds: str | Iterable[str],
        dirs_tars_wds: Mapping[Split | str, str | os.PathLike[str] | None],
        global_batch_size: int | None,
        prefix_tars_wds: str = DEFAULT_PREFIX,
        pipeline_wds: Mapping[Split | str, Pipeline | None] | None = None,
        pipeline_prebatch_wld: Mapping[Split | str, Pipeline | None] | None = None,
        kwargs_wds: Mapping[Split | str, Mapping[str, Any] | None] | None = None,
        kwargs_wld: Mapping[Split | str, Mapping[str, Any] | None] | None = None,
        *,
        invoke_wds: Mapping[Split | str, Calls | None] | None = None,
        invoke_wld: Mapping[Split | str, Calls | None] | None = None,
        missing: str = Missing.ERROR,
        storage_options: StorageOptions | None = None,
        allow: Collection[str] = (),
        allow_pickle: bool = False,
        decoders: Decoders | None = None,
    ) -> None:
        super().__init__()
        directories = by_split("dirs_tars_wds", dirs_tars_wds)
        counts = dict.fromkeys(directories) if n_samples is None else by_split("n_samples", n_samples)
        if counts.keys() != directories.keys():
            raise RuntimeError(
                f"n_samples has the splits {_names(counts)}, dirs_tars_wds {_names(directories)}: give the same"
            )
        self._n_samples: dict[Split, int | None] = {
            split: None if count is None else as_int(f"n_samples[{split}]", count) for split, count in counts.items()
        }
        self._dirs_tars_wds = dict(directories)
        self._kwargs_wds = by_split("kwargs_wds", kwargs_wds)
        self._kwargs_wld = by_split("kwargs_wld", kwargs_wld)
        check("kwargs_wds", self._kwargs_wds, KWARGS_WDS)
        check("kwargs_wld", self._kwargs_wld, KWARGS_WLD)
        self._suffix_keys_wds = suffix_keys_wds if isinstance(suffix_keys_wds, str) else check_suffixes(suffix_keys_wds)
        self._global_batch_size = (
            None if global_batch_size is None else as_int("global_batch_size", global_batch_size, 1)
        )
        self._prefix_tars_wds = prefix_tars_wds
        self._pipeline_wds = by_split("pipeline_wds", pipeline_wds)
        self._pipeline_prebatch_wld = by_split("pipeline_prebatch_wld", pipeline_prebatch_wld)
        self._invoke_wds = by_split("invoke_wds", invoke_wds)
        self._invoke_wld = by_split("invoke_wld", invoke_wld)
        self._missing = Missing.of(missing)
        self._storage_options = storage_options
        self._decoder = Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {})
        self._dataset: dict[Split, Any] = {}
        self._opened: dict[Split, OpenSplit] = {}
        self._counts: dict[Split, int | None] = {}  # as told, or as the snapshot says

    def prepare_data(self) -> None:
        """Nothing: the shards are there."""

    def setup(self, stage: str) -> None:
        """Open the splits of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            NotImplementedError: Any other stage.
            RuntimeError: A split that the stage needs has no directory.
            NotFoundError: There are no shards in it.
        """
        if stage not in _SPLITS_OF_STAGE:
            raise NotImplementedError(f"stage {stage!r}: known are {', '.join(_SPLITS_OF_STAGE)}")
        if stage == "fit":
            self._forget_training()
        for split in _SPLITS_OF_STAGE[stage]:
            if stage != "fit" or split != Split.val or self._has(split):
                self._dataset[split] = self._setup_wds(split)

    def train_dataloader(self) -> Any:
        """The loader of the training split: a `webdataset.WebLoader`. It goes on where the one before it was.

        A Trainer says which epoch comes; another `setup("fit")` begins with epoch 0.
        """
        loader = self._setup_wld(Split.train)
        return self._begin_training(loader) if isinstance(loader, EpochLoader) else loader

    @property  # Lightning looks whether the method is its own; a caller sees no difference
    def val_dataloader(self) -> Callable[[], Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A method that returns the loader of the validation split: a `webdataset.WebLoader`.

        Without a directory for the split it is Lightning's own, undefined method, and a Trainer does not validate.
        """
        return partial(self._setup_wld, Split.val) if self._has(Split.val) else super().val_dataloader

    def test_dataloader(self) -> Any:
        """The loader of the test split: a `webdataset.WebLoader`."""
        return self._setup_wld(Split.test)

    def predict_dataloader(self) -> Any:
        """The same as `test_dataloader`."""
        return self.test_dataloader()

    def _setup_wds(self, split: Split) -> Any:
        """The split's dataset: its samples, the user's pipeline, the user's calls."""
        opened = self._opened[split] = open_split(
            self._directory(split),
            self._prefix_tars_wds,
            self._storage_options,
            suffixes=check_suffixes(self._suffix_keys_wds),
            missing=self._missing,
            decoder=self._decoder,
            options=self._options(split),
            batch=self._global_batch_size,
            num_workers=(_of(self._kwargs_wld, split) or {}).get("num_workers") or 0,
        )
        told = self._n_samples.get(split)
        self._counts[split] = opened.num_samples if told is None else told
        return _invoke(opened.dataset().compose(*_pipes(self._pipeline_wds, split)), self._invoke_wds, split)

    def _setup_wld(self, split: Split) -> Any:
        """The split's loader: workers, the user's pipeline, the epoch's length, the user's calls."""
        dataset = self._dataset.get(split)
        if dataset is None:
            raise RuntimeError(f"split {split.name!r} is not set up: call setup() with a stage that uses it first")
        batch = self._global_batch_size
        told = None if batch is None else self._num_samples(split)
        loader = self._opened[split].loader(dataset, _of(self._kwargs_wld, split) or {}, batch, told)
        loader = loader.compose(*_pipes(self._pipeline_prebatch_wld, split))
        if batch is not None and told is not None:
            loader = loader.with_epoch(-(-told // batch))
        loader = _invoke(loader, self._invoke_wld, split)
        if isinstance(loader, EpochLoader):
            self._open.add(loader)
        elif loader.nsamples > 0 and not hasattr(loader, "__len__"):
            loader = loader.with_length(loader.nsamples, silent=True)
        return loader

    def _options(self, split: Split) -> dict[str, Any]:
        """The split's `kwargs_wds`. `overfit_batches` trains on the same batches in each epoch."""
        options = dict(_of(self._kwargs_wds, split) or {})
        return options | {"shardshuffle": False} if split == Split.train and self._is_overfitting() else options

    def _has(self, split: Split) -> bool:
        return self._dirs_tars_wds.get(split) is not None

    def _directory(self, split: Split) -> str:
        directory = self._dirs_tars_wds.get(split)
        if directory is None:
            raise RuntimeError(f"split {split.name!r} has no directory: name one in dirs_tars_wds")
        return os.fspath(directory)

    def _num_samples(self, split: Split) -> int:
        num_samples = self._counts[split]
        if num_samples is None:
            raise RuntimeError(
                f"split {split.name!r}: its tars have no snapshot that tells how many samples they hold: "
                "give n_samples, or global_batch_size=None for one pass an epoch"
            )
        return num_samples


class PickledDataWDS(WebDataModule):
    """Packs pickled samples into shards first, then streams them as `WebDataModule` does.

    Args:
        dir_pickles: Where the files `{name}.{suffix}` lie: a path or an object-storage URL.
        names_subset: Split -> the names of its samples.
        *args: Those of `WebDataModule` from `suffix_keys_wds` on; each directory in `dirs_tars_wds` receives a
            dataset.
        n_tars_wds: Exactly so many shards a split (fewer if it has fewer samples); None: by size.
        encode: What becomes of pickled parts, as in `dray.pipelines.pickles_to_tars`; `suffix_keys_wds` still names the
            pickles, and the pipelines get what docs/encodings.md says. `allow` and `allow_pickle` count there too.
        progress: Show the progress of packing on standard error.
        **kwargs: Those of `WebDataModule`.

    Raises:
        CallError: Two splits with the same directory: each would replace the other's samples.
    """

    def __init__(
        self,
        dir_pickles: str | os.PathLike[str],
        names_subset: Mapping[Split | str, Sequence[str]],
        *args: Any,
        n_tars_wds: int | None = None,
        encode: str | Mapping[str, str] | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        names_of = by_split("names_subset", names_subset)
        super().__init__({split: len(names) for split, names in names_of.items()}, *args, **kwargs)
        self._dir_pickles = dir_pickles
        self._names_subset = names_of
        self._n_tars_wds = None if n_tars_wds is None else as_int("n_tars_wds", n_tars_wds, 1)
        trust = {} if encode is None else {"allow": self._decoder.allow, "allow_pickle": self._decoder.allow_pickle}
        self._encoding: dict[str, Any] = {"encode": encode, **trust}
        self._progress = progress
        check_distinct(normal_url(directory) for directory in self._dirs_tars_wds.values() if directory is not None)

    def prepare_data(self) -> None:
        """Build every split's dataset; where a last snapshot holds just these samples, nothing is written.

        Raises:
            RuntimeError: See `dray.pipelines.pickles_to_tars`.
        """
        from dray.pipelines import pickles_to_tars  # reading needs none of it
        from dray.pipelines.progress import say

        for split, names in self._names_subset.items():
            if not names:
                say(f"split {split.name!r} has no samples: no dataset is made of it", show=self._progress)
                continue
            report = pickles_to_tars(
                self._dir_pickles,
                names,
                self._suffix_keys_wds,
                self._directory(split),
                self._prefix_tars_wds,
                min_num_shards=self._n_tars_wds,
                **self._encoding,
                storage_options=self._storage_options,
                progress=self._progress,
            )
            is_news = report.num_reused < report.num_shards  # Lightning calls this for every stage
            say(str(report), show=self._progress and is_news)


def _of(by_split: Mapping[Split, Any] | None, split: Split) -> Any:
    """A split's value; None where the dictionary or the entry is missing."""
    return (by_split or {}).get(split)


def _pipes(by_split: Mapping[Split, Pipeline | None] | None, split: Split) -> list[Pipe]:
    """A split's pipeline as a list."""
    pipeline = _of(by_split, split)
    if pipeline is None:
        return []
    return list(pipeline) if isinstance(pipeline, Iterable) else [pipeline]


def _invoke(target: Any, calls: Mapping[Split, Calls | None] | None, split: Split) -> Any:
    """The target after the user's method calls, each on what the last one returned."""
    for method, arguments in _of(calls, split) or ():
        target = getattr(target, method)(**arguments)
    return target


def _names(splits: Iterable[Split]) -> list[str]:
    return sorted(split.name for split in splits)
