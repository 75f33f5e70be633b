"""The costs of loading in the log of the training: rates, waiting times, requests."""

import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import lightning

from dray.loaders.loader_metrics import LoaderMetrics

COUNTS = ("requests", "retries", "cache_hits", "skipped")


class LoaderStats(lightning.Callback):
    """Logs the training loader's `stats()` of this rank every `trainer.log_every_n_steps` steps.

    Loggers write on rank 0, so the values are those of rank 0. Rates cover the steps since the last entry, without the
    time of validation.

        data/samples_per_s     data/bytes_per_s       samples and bytes per second that the trainer got
        data/wait_s_per_step   data/wait_share        seconds that a step waited for its batch; share of the total time
        data/requests          data/retries           number of requests to object storage so far
        data/cache_hits        data/skipped           number of cache hits and of skipped samples so far

    Values that the loader's `stats()` lacks are left out.

    Args:
        ray_dataset: Value of the label `dataset`, such as the URL, under which each rank also exports Prometheus
            metrics through Ray, where Ray is initialised; see `LoaderMetrics`. None: no such metrics.
    """

    def __init__(self, *, ray_dataset: str | None = None) -> None:
        self._ray_dataset = ray_dataset
        self._metrics: LoaderMetrics | None = None
        self._loader: Any = None
        self._has_stats = False
        self._stats: Mapping[str, float] = {}  # at the last entry
        self._since = 0.0
        self._paused = 0.0
        self._batches = 0
        self._step = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Look up the loader, which may have changed since the last epoch; warns if it has no `stats()`."""
        loader: Any = trainer.train_dataloader
        if loader is self._loader:
            return
        self._loader, self._has_stats = loader, hasattr(loader, "stats")
        if self._has_stats:
            self._begin(loader.stats(), trainer.global_step)
            if self._ray_dataset is not None:
                self._metrics = LoaderMetrics(loader, self._ray_dataset, rank=trainer.global_rank)
        else:
            warnings.warn(f"LoaderStats: {type(loader).__name__} has no stats(), so nothing is logged", stacklevel=2)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log at the steps that Lightning logs."""
        if not self._has_stats:
            return
        if self._metrics is not None:
            self._metrics.record()
        self._batches += 1
        step = trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it, undeclared
        if not every or step // every == self._step // every:  # not a new step while gradients accumulate
            return
        stats = self._loader.stats()
        logged = {f"data/{name}": value for name, value in self._entry(stats).items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=step - 1)  # Lightning numbers its own entries from 0
        self._begin(stats, step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Stop the clock."""
        self._paused = perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Restart the clock."""
        self._since += perf_counter() - self._paused

    def _begin(self, stats: Mapping[str, float], step: int) -> None:
        self._stats, self._step, self._batches, self._since = stats, step, 0, perf_counter()

    def _entry(self, stats: Mapping[str, float]) -> dict[str, float]:
        """Returns the entry: rates since the last one, and counts so far."""
        seconds = perf_counter() - self._since
        gained = {name: value - self._stats.get(name, 0) for name, value in stats.items()}
        entry: dict[str, float] = {}
        if "wait_s" in gained:
            entry |= {"wait_s_per_step": gained["wait_s"] / self._batches, "wait_share": gained["wait_s"] / seconds}
        entry |= {f"{name}_per_s": gained[name] / seconds for name in ("samples", "bytes") if name in gained}
        return entry | {name: stats[name] for name in COUNTS if name in stats}
