"""Make a tokenizer with one token per character, for texts with few distinct characters.

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
from train.train_tokenizer import check_output, write_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>")


@dataclass
class CharacterArguments:
    """The text, and the folder of the tokenizer."""

    output_dir: str = required("Folder for the tokenizer; it must not contain one yet.", is_path=True)
    text: list[str] = option_list("Text files; each character in them becomes a token.", is_path=True)

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("--text is required: name the files whose characters become the tokens.")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tokenizer for the characters of a text."""
    (arguments,) = parse_recipe([CharacterArguments], argv, description=__doc__ or "")
    check_output(arguments.output_dir)
    tokenizer = character_tokenizer(document.text for document in text_corpus(arguments.text))
    write_tokenizer(tokenizer, Path(arguments.output_dir))
    print(f"Saved to {arguments.output_dir}: {len(tokenizer)} tokens, {len(SPECIAL_TOKENS)} of them special")


def character_tokenizer(texts: Iterable[str]) -> ScratchGPTTokenizer:
    """A tokenizer for the characters of `texts`: ids are special tokens, then characters by code point.

    Encoding any other character is an error: there is no token for unknown characters.
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
