"""Default adapter targets for PEFT, which may be imported before this package, after it, or never.

PEFT has no function to register them, only one dictionary per adapter type. Importing PEFT here would add more than a
second to the import of this package, so an import hook waits for the module that defines these dictionaries.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PEFT_DEFAULTS = "peft.utils.constants"


def register_with_peft() -> None:
    """Give ScratchGPT the default targets of PEFT's adapters: now if PEFT is loaded, else when it is imported."""
    if PEFT_DEFAULTS in sys.modules:
        _add_targets(sys.modules[PEFT_DEFAULTS])
    else:
        sys.meta_path.insert(0, _PeftHook())


def _add_targets(peft_defaults: ModuleType) -> None:
    """Copy the targets of Llama, whose projections have the same names."""
    for name, targets in vars(peft_defaults).items():
        if name.endswith("_MODULES_MAPPING") and "llama" in targets:
            targets.setdefault("scratch_gpt", targets["llama"])


class _PeftHook(MetaPathFinder, Loader):
    """Loads one module as usual, then adds our targets; the hook removes itself before that."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PEFT_DEFAULTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _add_targets(module)
