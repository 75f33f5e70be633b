"""Ray for the tests of Ray Data."""

import logging
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A cluster of two CPUs on this machine; this process is its driver, and gets rows in order."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray Train asks the cluster that it finds first whether its controller lives. Another test's cluster says no,
        # and the training is ended.
        patch.setenv("RAY_ADDRESS", "local")
        start()
    yield
    ray.shutdown()


def start() -> None:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
