"""Lightning DataModules with the interface of NVIDIA's bionemo-webdatamodule."""

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
from dray.shards.errors import CallError
from dray.shards.layout import Layout, check_suffixes
from dray.shards.reading.suffixes import Missing
from dray.shards.reading.tar_files import DataUrl, names_tars
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

    `fit` needs the split train, and validates if there is a split val; `validate` needs val, `test` and `predict` need
    test. In every dictionary a split may be named by a string (`"train"`), and its value may be missing or None, except
    that `n_samples` and `dirs_tars_wds` must name the same splits.

    Args:
        n_samples: Split -> number of samples; None: the number in the dataset's snapshot.
        suffix_keys_wds: Suffix or suffixes of the parts to read, compared without case. A sample reaches the pipelines
            as a tuple of the decoded parts. The end of a suffix is enough ("pyd" for "tensor.pyd"); for the names of an
            encoded part see `ShardLoader`.
        dirs_tars_wds: Split -> directory of its dataset, a path or an object-storage URL; or tars without a dataset: a
            folder of them, one, a pattern such as "train-{000..099}.tar" or "train-*.tar", or a list.
        global_batch_size: Number of samples per step over all ranks. An epoch of a loader is
            ceil(n_samples / global_batch_size) outputs of the last pipeline; if the data end earlier, it goes on into a
            further pass. With None an epoch is one pass, and the loader has no length. The pipelines do the batching.
        prefix_tars_wds: Prefix of the datasets, or of the names of tars without a dataset; "" for all tars of a folder.
        pipeline_wds: Split -> one generator function over samples, or several in a row; run in the workers.
        pipeline_prebatch_wld: Split -> the same over the outputs of the workers; run in the training process.
        kwargs_wds: Split -> keyword arguments of `webdataset.WebDataset`.
        kwargs_wld: Split -> keyword arguments of `webdataset.WebLoader`, such as `num_workers`.
        invoke_wds: Split -> [(method, keyword arguments), ...], called last on the dataset.
        invoke_wld: Split -> the same, called last on the loader.
        missing: What happens if a sample lacks one of the parts: "error" raises an error that names it; "none" makes
            the value None.
        storage_options: Options for `dirs_tars_wds`; see `dray.shards.Store`.
        data_url: Where the tars of indexed datasets are, if they are outside their folders: they are read there only if
            you say so. One URL, or split -> URL.
        data_storage_options: Options for the store of `data_url`, which gets none of `storage_options`.
        allow: Full names (`pkg.module.Class`) that pickled parts may use in addition to the safe list.
        allow_pickle: Whether pickled parts may run any code that they name.
        decoders: Functions by suffix, from the bytes of a part to its value, such as `{"wav": read_wav}`.

    Raises:
        RuntimeError: `n_samples` and `dirs_tars_wds` name different splits.
        CallError: A key is not a split, or a keyword is unknown.
    """

    def __init__(
        self,
        n_samples: Mapping[Split | str, int | None] | None,
        suffix_keys_wds: str | Iterable[str],
        dirs_tars_wds: Mapping[Split | str, DataUrl | None],
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
        data_url: str | os.PathLike[str] | Mapping[Split | str, str | os.PathLike[str] | None] | None = None,
        data_storage_options: StorageOptions | None = None,
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
        self._data_url = by_split("data_url", data_url) if isinstance(data_url, Mapping) else data_url
        self._data_storage_options = data_storage_options
        self._decoder = Decoder(allow=allow, allow_pickle=allow_pickle, decoders=decoders or {})
        self._dataset: dict[Split, Any] = {}
        self._opened: dict[Split, OpenSplit] = {}
        self._counts: dict[Split, int | None] = {}  # given, or from the snapshot

    def prepare_data(self) -> None:
        """Do nothing: the shards exist already."""

    def setup(self, stage: str) -> None:
        """Open the splits of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            NotImplementedError: Any other stage.
            RuntimeError: A split that the stage needs has no directory.
            NotFoundError: A directory has no shards; says what is there.
        """
        if stage not in _SPLITS_OF_STAGE:
            raise NotImplementedError(f"stage {stage!r}: known are {', '.join(_SPLITS_OF_STAGE)}")
        if stage == "fit":
            self._forget_training()
        for split in _SPLITS_OF_STAGE[stage]:
            if stage != "fit" or split != Split.val or self._has(split):
                self._dataset[split] = self._setup_wds(split)

    def train_dataloader(self) -> Any:
        """Returns the loader of the training split, a `webdataset.WebLoader` that goes on where the one before it was.

        A Trainer sets the epoch; another `setup("fit")` begins with epoch 0.
        """
        loader = self._setup_wld(Split.train)
        return self._begin_training(loader) if isinstance(loader, EpochLoader) else loader

    @property  # a property, as Lightning checks whether the method is its own
    def val_dataloader(self) -> Callable[[], Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Method that returns the loader of the validation split, a `webdataset.WebLoader`.

        Without a directory for the split it is Lightning's own method, so that a Trainer does not validate.
        """
        return partial(self._setup_wld, Split.val) if self._has(Split.val) else super().val_dataloader

    def test_dataloader(self) -> Any:
        """Returns the loader of the test split, a `webdataset.WebLoader`."""
        return self._setup_wld(Split.test)

    def predict_dataloader(self) -> Any:
        """Returns the same as `test_dataloader`."""
        return self.test_dataloader()

    def _setup_wds(self, split: Split) -> Any:
        """Opens a split; returns its samples after the user's pipeline and calls."""
        opened = self._opened[split] = open_split(
            self._url(split),
            self._prefix_tars_wds,
            self._storage_options,
            **self._data_access(split),
            suffixes=check_suffixes(self._suffix_keys_wds),
            missing=self._missing,
            decoder=self._decoder,
            options=self._options(split),
            batch=self._global_batch_size,
            num_workers=(_of(self._kwargs_wld, split) or {}).get("num_workers") or 0,
        )
        given = self._n_samples.get(split)
        self._counts[split] = opened.num_samples if given is None else given
        return _invoke(opened.dataset().compose(*_pipes(self._pipeline_wds, split)), self._invoke_wds, split)

    def _data_access(self, split: Split) -> dict[str, Any]:
        """Returns where the tars of a split may be read outside its directory; see `Snapshot.open`."""
        url = self._data_url.get(split) if isinstance(self._data_url, Mapping) else self._data_url
        is_inside = isinstance(self._data_url, Mapping) and url is None  # other splits have their tars elsewhere
        return {"data_url": url, "data_storage_options": None if is_inside else self._data_storage_options}

    def _setup_wld(self, split: Split) -> Any:
        """Returns the split's loader after the user's pipeline and calls, with the length of the epoch."""
        dataset = self._dataset.get(split)
        if dataset is None:
            raise RuntimeError(f"split {split.name!r} is not set up: call setup() with a stage that reads it first")
        batch = self._global_batch_size
        num_samples = None if batch is None else self._num_samples(split)
        loader = self._opened[split].loader(dataset, _of(self._kwargs_wld, split) or {}, batch, num_samples)
        loader = loader.compose(*_pipes(self._pipeline_prebatch_wld, split))
        if batch is not None and num_samples is not None:
            loader = loader.with_epoch(-(-num_samples // batch))
        loader = _invoke(loader, self._invoke_wld, split)
        if isinstance(loader, EpochLoader):
            self._open.add(loader)
        elif loader.nsamples > 0 and not hasattr(loader, "__len__"):
            loader = loader.with_length(loader.nsamples, silent=True)
        return loader

    def _options(self, split: Split) -> dict[str, Any]:
        """Returns the split's `kwargs_wds`, without shuffling if `overfit_batches` repeats the same batches."""
        options = dict(_of(self._kwargs_wds, split) or {})
        return options | {"shardshuffle": False} if split == Split.train and self._is_overfitting() else options

    def _has(self, split: Split) -> bool:
        return self._dirs_tars_wds.get(split) is not None

    def _url(self, split: Split) -> DataUrl:
        """Returns the directory of a split, or its tars."""
        url = self._dirs_tars_wds.get(split)
        if url is None:
            raise RuntimeError(f"split {split.name!r} has no directory: give it one in dirs_tars_wds")
        return url

    def _num_samples(self, split: Split) -> int:
        num_samples = self._counts[split]
        if num_samples is None:
            raise RuntimeError(
                f"split {split.name!r}: its tars have no snapshot with the number of samples: give n_samples, or "
                "global_batch_size=None for epochs of one pass"
            )
        return num_samples


class PickledDataWDS(WebDataModule):
    """Packs pickled samples into shards first, then streams them as `WebDataModule` does.

    Args:
        dir_pickles: Directory of the files `{name}.{suffix}`, a path or an object-storage URL.
        names_subset: Split -> names of its samples.
        *args: Arguments of `WebDataModule` from `suffix_keys_wds` on. A dataset is built in each directory of
            `dirs_tars_wds`.
        n_tars_wds: Number of shards of each split (fewer if it has fewer samples); None: by size.
        encode: How pickled parts are stored, as in `dray.pipelines.pickles_to_tars`. `suffix_keys_wds` still names the
            pickles; docs/encodings.md lists the values that the pipelines get. `allow` and `allow_pickle` apply here as
            well.
        progress: Whether to show the progress of packing on standard error.
        **kwargs: Keyword arguments of `WebDataModule`.

    Raises:
        CallError: Two splits have the same directory, so each would replace the other's samples; or one has tars in its
            place, or the prefix is empty.
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
        Layout(self._prefix_tars_wds)  # checks the prefix
        check_distinct(normal_url(self._directory(split)) for split in Split if self._has(split))

    def prepare_data(self) -> None:
        """Build the dataset of each split; writes nothing if its latest version has exactly these samples.

        Raises:
            RuntimeError: See `dray.pipelines.pickles_to_tars`.
        """
        from dray.pipelines import pickles_to_tars  # imported here, as reading needs none of it
        from dray.pipelines.progress import say

        for split, names in self._names_subset.items():
            if not names:
                say(f"split {split.name!r} has no samples, so no dataset is built", show=self._progress)
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

    def _directory(self, split: Split) -> str | os.PathLike[str]:
        """Returns the directory in which the dataset of a split is built."""
        url = self._url(split)
        if names_tars(url) or not isinstance(url, str | os.PathLike):
            raise CallError(
                f"dirs_tars_wds: PickledDataWDS builds a dataset for {split.name!r}, so a directory expected, found "
                f"{url!r:.200}; WebDataModule reads tars that exist"
            )
        return url


def _of(by_split: Mapping[Split, Any] | None, split: Split) -> Any:
    """Returns the value of a split; None if the dictionary or the entry is missing."""
    return (by_split or {}).get(split)


def _pipes(by_split: Mapping[Split, Pipeline | None] | None, split: Split) -> list[Pipe]:
    """Returns the pipeline of a split as a list."""
    pipeline = _of(by_split, split)
    if pipeline is None:
        return []
    return list(pipeline) if isinstance(pipeline, Iterable) else [pipeline]


def _invoke(target: Any, calls: Mapping[Split, Calls | None] | None, split: Split) -> Any:
    """Returns the target after the user's method calls, each on the result of the one before."""
    for method, arguments in _of(calls, split) or ():
        target = getattr(target, method)(**arguments)
    return target


def _names(splits: Iterable[Split]) -> list[str]:
    return sorted(split.name for split in splits)
