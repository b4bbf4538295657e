"""A tokenizer with one token per character, for texts with few different ones.

python -m examples.tiny_shakespeare.character_tokenizer --text input.txt --output_dir runs/tiny_shakespeare/tokenizer
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer
from train.data.corpora import text_corpus
from train.settings.command import run_command
from train.settings.recipe import option_list, parse_recipe, required
from train.train_tokenizer import check_output, save_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>")


@dataclass
class CharacterArguments:
    """Where the characters come from and where the tokenizer goes."""

    output_dir: str = required("Folder for the tokenizer; one that holds a tokenizer is refused.")
    text: list[str] = option_list("Text files; each character that occurs in them becomes a token.")

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("--text is missing: name the file whose characters become the tokens.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tokenizer of a text."""
    (arguments,) = parse_recipe([CharacterArguments], argv, description=__doc__ or "")
    check_output(arguments.output_dir)
    tokenizer = character_tokenizer(document.text for document in text_corpus(arguments.text))
    save_tokenizer(tokenizer, Path(arguments.output_dir))
    print(f"Tokenizer in {arguments.output_dir}: {len(tokenizer)} tokens, {len(SPECIAL_TOKENS)} of them special.")


def character_tokenizer(texts: Iterable[str]) -> ScratchGPTTokenizer:
    """A tokenizer for exactly the characters of `texts`; ids: special tokens, then characters by code point.

    Any other character is an error when it is encoded: no token stands for the unknown.
    """
    characters = sorted(set().union(*texts))
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate((*SPECIAL_TOKENS, *characters))}))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    end_of_text, pad = SPECIAL_TOKENS
    return ScratchGPTTokenizer(
        tokenizer_object=backend,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
