"""sentencepiece's .model files: unigram, and BPE with or without byte fallback.

The file contains the pieces with their scores, and how text is normalized before. Reading it requires protobuf, but not
sentencepiece.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from hf_scratch_gpt.tokenization_scratch_gpt import ScratchGPTTokenizer

from .wrapped import wrapped

SPACE = "\u2581"  # what a space is in the pieces
UNIGRAM, BPE_MODEL = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces


def read_sentencepiece(path: Path) -> ScratchGPTTokenizer:
    """The tokenizer of a .model file.

    Raises:
        ValueError: the file is damaged, or has a feature that the tokenizers library lacks.
        ImportError: protobuf is not installed.
    """
    proto = _read(path)
    _check(path, proto)
    is_bpe = proto.trainer_spec.model_type == BPE_MODEL
    backend = Tokenizer(_bpe(proto) if is_bpe else _unigram(proto))
    backend.normalizer = _normalizer(proto.normalizer_spec)
    if splits := _splits(proto):
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = _decoder(proto)
    special = [piece.piece for piece in proto.pieces if piece.type in (CONTROL, UNKNOWN)]
    return wrapped(backend, special, **_roles(proto))


def _read(path: Path) -> Any:
    try:
        proto = import_protobuf().ModelProto()
    except ImportError:
        raise ImportError(
            f'{path} is a sentencepiece model, which protobuf reads: pip install "hf_scratch_gpt[sentencepiece]"'
        ) from None
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception:  # of protobuf, whose class depends on its version
        raise ValueError(f"{path} is not a sentencepiece model, or damaged: copy or download it again.") from None
    if not proto.pieces:
        raise ValueError(f"{path} is not a sentencepiece model, or damaged: it has no pieces.")
    return proto


def _check(path: Path, proto: Any) -> None:
    """Refuse what would give other ids than sentencepiece.

    Raises:
        ValueError: the feature.
    """
    spec = proto.trainer_spec
    if spec.model_type not in (UNIGRAM, BPE_MODEL):
        raise ValueError(f"{path} is a word or character model of sentencepiece: only unigram and BPE can be read.")
    if spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        raise ValueError(f"{path} treats whitespace in a way (as suffix, or not escaped) that cannot be converted.")
    if any(piece.type == UNUSED for piece in proto.pieces):
        raise ValueError(f"{path} has unused pieces (set_vocabulary): save the model without a restricted vocabulary.")
    if proto.denormalizer_spec.precompiled_charsmap:
        raise ValueError(f"{path} has rules for the decoded text, which the tokenizers library lacks.")
    num_bytes = sum(piece.type == BYTE for piece in proto.pieces)
    if spec.byte_fallback and num_bytes != 256:
        raise ValueError(f"{path} has {num_bytes} of the 256 bytes that it falls back to: it is damaged.")


def _unigram(proto: Any) -> Unigram:
    # -0.1 is what unigram_model.cc counts for a user-defined symbol: its `length * max_score_ - 0.1`, where max_score_
    # starts at FLT_MIN, which is above every score
    pieces = [(piece.piece, -0.1 if piece.type == USER_DEFINED else piece.score) for piece in proto.pieces]
    return Unigram(pieces, unk_id=_unknown_id(proto), byte_fallback=proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> BPE:
    """Merges in the order of their scores: the pair with the best piece is merged first."""
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    usable = {piece.piece: piece.score for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)}
    merges = generate_merges(usable, list(usable.items()))
    return BPE(
        vocab=ids,
        merges=merges,
        unk_token=proto.pieces[_unknown_id(proto)].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=any(piece.type == USER_DEFINED for piece in proto.pieces),  # a symbol has no merges
    )


def _unknown_id(proto: Any) -> int:
    return next(number for number, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$|(?<= ) +"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _splits(proto: Any) -> list[Any]:
    """Cuts around user-defined symbols of a BPE, and inside of pieces that no text may give, such as </s>."""
    splits: list[Any] = []
    symbols = sorted((p.piece for p in proto.pieces if p.type == USER_DEFINED), key=len, reverse=True)
    if symbols and proto.trainer_spec.model_type == BPE_MODEL:
        splits.append(pre_tokenizers.Split(Regex("|".join(map(_escaped, symbols))), "isolated"))
    hidden = [p.piece for p in proto.pieces if p.type in (CONTROL, UNKNOWN) and len(p.piece) > 1]
    cuts = [f"{_escaped(name[0])}(?={_escaped(name[1:])})" for name in hidden]
    if any(piece.type == BYTE for piece in proto.pieces):
        cuts.append("<(?=0x[0-9A-F]{2}>)")
    if cuts:
        splits.append(pre_tokenizers.Split(Regex("|".join(cuts)), "merged_with_previous"))
    return splits


def _escaped(text: str) -> str:
    return re.sub(r"([^\w\s<>/])", r"\\\1", text)


def _decoder(proto: Any) -> decoders.Decoder:
    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    if proto.trainer_spec.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _roles(proto: Any) -> dict[str, str | None]:
    spec = proto.trainer_spec
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    return {role: proto.pieces[number].piece if number >= 0 else None for role, number in ids.items()}
