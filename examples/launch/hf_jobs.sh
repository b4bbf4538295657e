#!/bin/bash
# The run on a machine of Hugging Face Jobs, with its folder in a bucket.
# Status: parsed only (bash -n and the options of train.pretrain, in tests/test_launch.py; never sent).
#
#   ORGANISATION=me BUCKET=runs IMAGE=registry/image train/launch/hf_jobs.sh [--dry-run]
#
# The image must hold this repository. A bucket is object storage: whether a mounted one renames a folder at once is not
# known to us, and a checkpoint that was cut off is only found and set aside at the next start. A second attempt runs
# the same command, which continues. Jobs reads the token from your environment; it is in no file.
set -euo pipefail

hf jobs run "$@" \
    --name pretrain \
    --flavor a100x8 \
    --timeout 24h \
    --attempts 5 \
    --secrets HF_TOKEN \
    --volume "hf://buckets/$ORGANISATION/$BUCKET:/shared" \
    "$IMAGE" \
    torchrun --standalone --nproc_per_node=8 -m train.pretrain /shared/recipe.yaml \
    --output_dir /shared/runs/big --dp_shard_size 8
