"""Text that is written while it is generated."""

from random import Random

import pytest
import torch

from hf_scratch_gpt import ScratchGPTTokenizer
from train.model.generation import TextStream


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_writes_all_but_a_character_that_may_go_on(base, seed):
    """Also if the tokens are random bytes, as those of a model that is hardly trained."""
    tokenizer, random = ScratchGPTTokenizer.from_pretrained(base), Random(seed)
    ids = tokenizer("".join(map(chr, random.sample([*range(0x20, 0x250), *range(0x1F300, 0x1F500)], 6))))["input_ids"]
    for _ in range(seed):
        ids.insert(random.randrange(len(ids)), random.randrange(len(tokenizer)))
    written = []
    stream = TextStream(tokenizer, written.append)
    for token in [0, *ids]:  # the first is the prompt
        stream.put(torch.tensor([token]))
        text = tokenizer.decode(stream.ids, skip_special_tokens=True)
        assert text.startswith("".join(written))
        assert len(text) - len("".join(written)) <= 1
    stream.end()
    assert "".join(written) == stream.text == tokenizer.decode(ids, skip_special_tokens=True)
