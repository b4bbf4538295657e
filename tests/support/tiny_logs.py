"""Log records of a short run, written by hand."""

import math


def step_record(step, **changes):
    record = {
        "step": step,
        "tokens_seen": 1000 * step,
        "loss": 9.0 - step / 20,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
    }
    return record | {"tokens_per_second": 5000.0 + step} | changes


def evaluation(step, loss):
    metrics = {"eval_loss": loss, "eval_perplexity": math.exp(loss), "eval_bits_per_byte": loss / 3}
    return {"step": step, "tokens_seen": 1000 * step} | metrics


METRICS = [*map(step_record, range(1, 61)), evaluation(20, 3.5), evaluation(40, 3.25), evaluation(60, 3.4)]
