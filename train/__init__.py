"""How a model is trained: scripts (verbs) over a few parts (nouns)."""

from .cli import COMMANDS
from .cli.early import answer_module_call

answer_module_call(__name__, tuple(COMMANDS))
