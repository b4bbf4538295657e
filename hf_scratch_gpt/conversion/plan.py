"""How each tensor of a converted model is made from those of its source. All mistakes are found before any is read."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from .families import BASE, Family, Rule
from .sources import Source

Shape = tuple[int, ...]
OUR_PREFIX = "model."


@dataclass(frozen=True)
class Recipe:
    """How to make a tensor of `shape` from those named `sources`."""

    sources: tuple[str, ...]
    shape: Shape
    build: Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """A tensor of theirs and the tensors of ours with the same numbers, with their full names."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool


def pairs(family: Family, our_class: str, num_layers: int, prefix: str) -> list[Pair]:
    """All tensors that a model of the family can have.

    Args:
        prefix: of the names of their base model.
    """
    our_prefix = "" if our_class == BASE else OUR_PREFIX
    rules = [Rule(prefix + rule.theirs, tuple(our_prefix + name for name in rule.ours), rule.transposed)
             for rule in family.rules]  # fmt: skip
    found = []
    for rule in [*rules, *family.head_rules[our_class]]:
        for layer in range(num_layers) if "{i}" in rule.theirs else [0]:
            names = (name.replace("{i}", str(layer)) for name in (rule.theirs, *rule.ours))
            theirs, *ours = names
            found.append(Pair(theirs, tuple(ours), rule.transposed))
    return found


def import_plan(
    family: Family, our_class: str, num_layers: int, ours: Mapping[str, Shape], source: Source
) -> dict[str, Recipe]:
    """Recipes for our tensors.

    Args:
        ours: names and shapes of our tensors; without tied ones.

    Raises:
        ValueError: tensors of the source that are missing, have another shape, or have no place in our model.
    """
    prefix = family.prefix_of(our_class)
    if not any(name.startswith(prefix) for name in source.shapes):
        prefix = ""  # the files of a base model
    plan, expected = {}, {}
    for pair in pairs(family, our_class, num_layers, prefix):
        parts = [ours[name] for name in pair.ours if name in ours]
        if not parts:
            continue
        expected[pair.theirs] = _transposed(_stacked(parts), pair.transposed)
        rows = [shape[0] for shape in parts]
        for number, name in enumerate(pair.ours):
            plan[name] = Recipe((pair.theirs,), ours[name], _part(number, rows, pair.transposed))
    for name, shape in ours.items():
        if name not in plan and re.fullmatch(family.zeros, name):
            plan[name] = Recipe((), shape, _zeros(shape))
    check(expected, source.shapes, family.ignored)
    return plan


def export_plan(
    family: Family, our_class: str, num_layers: int, ours: Mapping[str, Shape], source: Source
) -> dict[str, Recipe]:
    """Recipes for their tensors.

    Args:
        ours: names and shapes that our tensors must have; without tied ones.

    Raises:
        ValueError: as `import_plan`.
    """
    check(ours, source.shapes)
    plan, weights = {}, {}
    for pair in pairs(family, our_class, num_layers, family.prefix_of(our_class)):
        parts = [ours[name] for name in pair.ours if name in ours]
        if parts:
            shape = _transposed(_stacked(parts), pair.transposed)
            plan[pair.theirs] = Recipe(pair.ours, shape, _joined(pair.transposed))
            weights[pair.theirs] = _stacked(parts)
        elif family.zero_biases and pair.theirs.endswith(".bias"):
            size = weights[pair.theirs.removesuffix(".bias") + ".weight"][0]
            plan[pair.theirs] = Recipe((), (size,), _zeros((size,)))
    return plan


def _part(number: int, rows: list[int], transposed: bool) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    def build(tensors: list[torch.Tensor]) -> torch.Tensor:
        stacked = tensors[0].t() if transposed else tensors[0]
        return stacked.split(rows)[number] if len(rows) > 1 else stacked

    return build


def _joined(transposed: bool) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    def build(tensors: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return stacked.t() if transposed else stacked

    return build


def _zeros(shape: Shape) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    return lambda tensors: torch.zeros(shape)


def _stacked(shapes: list[Shape]) -> Shape:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _transposed(shape: Shape, transposed: bool) -> Shape:
    return shape[::-1] if transposed else shape


def check(expected: Mapping[str, Shape], found: Mapping[str, Shape], ignored: str = r"(?!)") -> None:
    """Compare names and shapes of tensors.

    Raises:
        ValueError: all differences; layers with the same difference are counted once.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected and not re.fullmatch(ignored, name)]
    wrong = [
        f"{name} is {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    kinds = (("missing", missing), ("of another shape", wrong), ("without a place in the model", extra))
    problems = [f"{kind}: {', '.join(by_layer(names))}" for kind, names in kinds if names]
    if problems:
        raise ValueError(f"the tensors do not fit the config; {'; '.join(problems)}.")


def by_layer(names: Iterable[str]) -> list[str]:
    """Names that differ only in the number of the layer as one: "h.{0-11}.ln_1.bias"."""
    groups: dict[str, list[int]] = {}
    for name in names:
        layer = re.search(r"(?<=[./])(h?)(\d+)(?=[./])", name)
        pattern = name[: layer.start(2)] + "{}" + name[layer.end(2) :] if layer else name
        groups.setdefault(pattern, []).extend([int(layer[2])] if layer else [])
    return [pattern.replace("{}", _numbers(layers)) if layers else pattern for pattern, layers in groups.items()]


def _numbers(layers: list[int]) -> str:
    if len(layers) == 1:
        return str(layers[0])
    is_range = layers == list(range(layers[0], layers[-1] + 1))
    return "{" + (f"{layers[0]}-{layers[-1]}" if is_range else ",".join(map(str, layers))) + "}"
