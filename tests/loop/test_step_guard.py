"""What a training step asks of the device: no waits, a bounded number of operations, no memory that grows."""

import gc
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_scratch_gpt import ScratchGPTForCausalLM, modeling_scratch_gpt
from tests.support.tiny import VOCAB, tiny_config
from tests.support.tiny_loop import Rows, new_accelerator_state  # noqa: F401
from train.checkpoint.state import TrainState
from train.distributed.device import build_accelerator
from train.loop.evaluation import evaluate
from train.loop.language_modeling import LanguageModeling
from train.loop.outcome import judge
from train.loop.run import Run, build_run
from train.loop.train import train_step
from train.settings.training import TrainArguments

# In these operations the host needs values of the device, so it waits for everything that is queued. `_to_copy` to
# another device does not occur on a CPU; `HostCopy` is the only place that asks for one.
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select", "bincount"}
# Upper bounds for a step of 2 micro-batches, 4 layers: lower them with every operation saved.
MOST_OPERATIONS = {"muon": 2_716, "adamw": 2_450}


class Operations(TorchDispatchMode):
    """Counts the operations that reach the device, as a profile of its kernels would."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def build(tmp_path):
    def build(optimizer="muon", **settings):
        values = {"max_steps": 20, "global_batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-3}
        arguments = TrainArguments(str(tmp_path), optimizer=optimizer, **values | settings)
        torch.manual_seed(0)
        rows = Rows(torch.randint(2, VOCAB, (50, 13)))
        objective = LanguageModeling(None, torch.ones(VOCAB), forward_kwargs={"skip_logits": True})
        model = ScratchGPTForCausalLM(tiny_config(residual_dropout=0.1))
        return build_run(arguments, build_accelerator("fp32"), model, objective, rows, rows, {})

    return build


def steps(run, count, state=None):
    """Make steps as `train` does, and yield what each has launched."""
    state = state or TrainState()
    for _ in range(count):
        with Operations() as operations:
            result = train_step(run, state)
        judge(run, state, result)
        state.step += 1
        yield operations.counts


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_nothing_in_a_step_or_an_evaluation_waits_for_a_gpu(build, monkeypatch, optimizer):
    monkeypatch.setattr(Run, "reads_late", True)
    monkeypatch.setattr(modeling_scratch_gpt, "check_range", lambda *_: None)  # CPU only
    run = build(optimizer)
    for counts in steps(run, 3):
        assert not WAITS & counts.keys()
    with Operations() as operations:
        sums = run.objective.evaluate_batch(run.model, run.batches_ahead.micro_batches[0][1])
    assert not WAITS & operations.counts.keys()
    with Operations() as operations:
        sums[0].item()
    assert WAITS & operations.counts.keys()


@pytest.mark.parametrize("reads_late", [False, True])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_launches_no_more_operations_than_before(build, monkeypatch, optimizer, reads_late):
    monkeypatch.setattr(Run, "reads_late", reads_late)
    first, second, third = (sum(counts.values()) for counts in steps(build(optimizer), 3))
    assert second == third <= first
    assert third <= MOST_OPERATIONS[optimizer]


@pytest.mark.parametrize("reads_late", [False, True])
def test_no_step_leaves_memory_behind(build, monkeypatch, reads_late):
    monkeypatch.setattr(Run, "reads_late", reads_late)
    run, sizes = build(), []
    for _ in steps(run, 4):
        gc.collect()
        tensors = {id(found): found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)}
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()))
        del tensors
    assert sizes[1] == sizes[2] == sizes[3]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_the_compiled_step_is_one_graph_compiled_once(build):
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    run, state, graphs = build(), TrainState(), []
    run.bare_model.compile(backend="aot_eager")
    for step in range(4):
        judge(run, state, train_step(run, state))
        state.step += 1
        graphs.append(counters["stats"]["unique_graphs"])
        if step == 1:
            evaluate(run)
    assert graphs == [1, 1, 1, 1]
    assert not counters["graph_break"]
