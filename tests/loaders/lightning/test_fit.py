"""One DataModule under several Trainers: each fit follows its Trainer's epochs, and no worker outlives one."""

import multiprocessing
from typing import Any

import lightning
import pytest
import torch
from webdataset import batched

from dray.loaders import Split, WebDataModule
from tests.support.datasets import pack, tensor_of

NUM_SAMPLES, BATCH = 103, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Uneven ones."""
    return pack(tmp_path_factory.mktemp("fit"), NUM_SAMPLES, 7, parts={"tensor.pyd": tensor_of(3)})


class Model(lightning.LightningModule):
    """Notes what it is trained on, and fails at a step if it is told to."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen: list[list[int]] = []
        self.fails_at = fails_at

    def training_step(self, values: torch.Tensor, number: int) -> torch.Tensor:
        self.seen.append(values[:, 0].int().tolist())
        if number == self.fails_at:
            raise ValueError("a step that fails")
        loss: torch.Tensor = self.layer(values).square().mean()
        return loss

    def validation_step(self, values: torch.Tensor, number: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data: WebDataModule, model: Model) -> list[list[int]]:
    """The batches of one epoch, by a Trainer of its own."""
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    return model.seen


def module(shards: str, num_workers: int) -> WebDataModule:
    splits = (Split.train, Split.val)
    return WebDataModule(
        None, "tensor.pyd", dict.fromkeys(splits, shards), BATCH,
        pipeline_wds=dict.fromkeys(splits, untuple),
        pipeline_prebatch_wld=dict.fromkeys(splits, batched(BATCH, collation_fn=torch.stack)),
        kwargs_wds={Split.train: {"shardshuffle": True}},
        kwargs_wld={split: {"num_workers": num_workers} for split in splits},
    )  # fmt: skip


def untuple(source: Any) -> Any:
    return (sample for (sample,) in source)


def test_each_fit_begins_with_its_trainers_epoch_whether_or_not_the_last_one_failed(shards: str) -> None:
    """A new Trainer begins with epoch 0, as with any other loader; and no worker outlives a fit, either way."""
    data, plain = module(shards, 2), module(shards, 0)
    plain.setup("fit")
    epoch = [batch[:, 0].int().tolist() for batch in plain.train_dataloader()]
    assert fit(data, Model()) == epoch
    assert not multiprocessing.active_children()
    broken = Model(fails_at=4)
    with pytest.raises(ValueError, match="a step that fails"):
        fit(data, broken)
    assert broken.seen == epoch[:5]
    assert not multiprocessing.active_children()
    assert fit(data, Model()) == epoch
