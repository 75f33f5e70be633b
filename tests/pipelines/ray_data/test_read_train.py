"""A dataset of `read_shards` feeds the workers of Ray Train."""

import json
from pathlib import Path

import pytest

from dray.pipelines import read_shards
from tests.support.datasets import npy, pack

NUM_SAMPLES, EPOCHS = 100, 2


def parts(number: int) -> bytes:
    return npy([float(number)] * 4)


@pytest.mark.heavy
@pytest.mark.usefixtures("ray_local")
@pytest.mark.filterwarnings("ignore")  # Ray Train's
def test_ray_train_gives_each_sample_to_one_worker(tmp_path: Path) -> None:
    """`get_dataset_shard` in two workers of a TorchTrainer, in both epochs."""
    from ray.train import DataConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train(config: dict[str, str]) -> None:
        import ray.train

        rank = ray.train.get_context().get_world_rank()
        shard = ray.train.get_dataset_shard("train")
        epochs = [
            [value for batch in shard.iter_torch_batches(batch_size=8) for value in batch["x.npy"][:, 0].tolist()]
            for _ in range(EPOCHS)
        ]
        Path(config["folder"], f"{rank}.json").write_text(json.dumps(epochs))

    dataset = read_shards(pack(tmp_path / "data", NUM_SAMPLES, parts={"x.npy": parts}))
    TorchTrainer(
        train,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path / "run")),
        datasets={"train": dataset.select_columns(["x.npy"])},  # torch has no text
        dataset_config=DataConfig(datasets_to_split="all"),
    ).fit()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for of_first, of_second in zip(first, second, strict=True):
        assert len(of_first) == len(of_second) == NUM_SAMPLES // 2
        assert sorted(of_first + of_second) == [*range(NUM_SAMPLES)]
