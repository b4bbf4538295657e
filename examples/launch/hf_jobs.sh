#!/bin/bash
# Train on a machine of Hugging Face Jobs, with the run folder in a bucket.
# Status: parsed only (bash -n and the options of pretrain, in tests/distributed/test_launch.py; never submitted).
#
#   ORGANISATION=me BUCKET=runs IMAGE=registry/image examples/launch/hf_jobs.sh [--dry-run]
#
# The image must contain this repository. A bucket is object storage; we do not know whether a mounted one renames
# folders atomically. If it does not, an incomplete checkpoint is detected and moved away at the next start. Each
# attempt runs the same command and continues. Jobs reads the token from your environment; no file contains it.
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
