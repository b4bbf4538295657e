"""Every file and folder name of a run folder: the one answer to "what does a run folder contain?".

    run/recipe.yaml                 the settings, as YAML
    run/budget.json                 what --minutes or --flops has chosen and expected
    run/status.json                 what became of the run: running, stopped, complete or failed
    run/metrics.jsonl               losses, learning rates and evaluations, one JSON object per line
    run/samples.jsonl               completions of the sample prompts
    run/confusion_matrices/         pictures of a classifier's evaluations
    run/test_results.json           a classifier's scores on its test set
    run/report.html                 the page that `report` writes
    run/skipped_steps.json          steps that `rollback` excludes
    run/checkpoint-00000250/        everything that a run continues from
        config.json model.safetensors       loads with AutoModelForCausalLM
        adapter_model.safetensors           instead of model.safetensors where only an adapter is trained
        optimizer.safetensors               optimizer state, {parameter name}.{state name}
        shard-*.safetensors optimizer/      instead, where processes have parts of the model
        manifest.json                       step, progress, settings, size and SHA-256 of each file
    run/.lock run/.heartbeat/       in use while the run is in progress
    run/adapter/                    the trained adapter, with the fingerprint of its base model
    run/model/                      the trained model, its tokenizer, model card and loss curve
        training.json                       its step and settings, size and SHA-256 of each file
    run/.tmp-*                      being written; what a kill has left is removed
    run/damaged-*                   checkpoints, models and adapters that have changed since they were written
    run/outdated-*                  model and adapter of a run that was then extended
    run/rolled-back-*               what `rollback` has moved away

Other modules take the names from here.
"""

RECIPE_FILE = "recipe.yaml"
BUDGET_FILE = "budget.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
CONFUSION_MATRICES_FOLDER = "confusion_matrices"
TEST_RESULTS_FILE = "test_results.json"
REPORT_FILE = "report.html"
SKIPPED_STEPS_FILE = "skipped_steps.json"
LOCK_FILE = ".lock"
HEARTBEAT_FOLDER = ".heartbeat"

CHECKPOINT_PREFIX = "checkpoint-"
MANIFEST_FILE = "manifest.json"
REASON_FILE = "reason.txt"
OPTIMIZER_FILE = "optimizer.safetensors"
OPTIMIZER_SHARDS_FOLDER = "optimizer"

MODEL_FOLDER = "model"
TRAINING_FILE = "training.json"
CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
MODEL_INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
LOSS_CURVE_FILE = "loss_curve.png"
CONFUSION_MATRIX_FILE = "confusion_matrix.png"

ADAPTER_FOLDER = "adapter"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
BASE_MODEL_FILE = "base_model.json"
