"""Train on a Ray cluster: Ray starts the processes, and restarts all of them when one is lost.

Status: parsed only (compiled, and its options checked, in tests/distributed/test_launch.py).

    ray job submit --working-dir . -- \
        python -m examples.launch.ray_train /shared/recipe.yaml --output_dir /shared/runs/big \
        --dp_shard_size 8 --save_steps 100

Recipe, data and run folder must be on storage that all machines share. Ray runs the training in a thread, which
receives no signals: a lost worker costs the steps since the last checkpoint, so save often.
"""

import sys

from ray.train import FailureConfig, RunConfig, ScalingConfig  # type: ignore[import-not-found]
from ray.train.torch import TorchTrainer  # type: ignore[import-not-found]

NUM_PROCESSES = 8  # one GPU each


def worker(settings: dict[str, list[str]]) -> None:
    """One process of the run; Ray has set RANK, WORLD_SIZE and MASTER_ADDR."""
    from train.pretrain import main

    main(settings["argv"])


if __name__ == "__main__":
    TorchTrainer(
        worker,
        train_loop_config={"argv": sys.argv[1:]},
        scaling_config=ScalingConfig(num_workers=NUM_PROCESSES, use_gpu=True),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=10)),
    ).fit()
