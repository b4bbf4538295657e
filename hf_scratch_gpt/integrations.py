"""Hooks into libraries that may be imported before or after this package, or never."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def on_import(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call `callback(module)` as soon as the module `name` is imported: at once if it already is."""
    if name in sys.modules:
        callback(sys.modules[name])
    else:
        sys.meta_path.insert(0, _ImportWatcher(name, callback))


class _ImportWatcher(MetaPathFinder):
    """Lets the usual finders load one module, then calls back and is gone."""

    def __init__(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _NotifyingLoader(spec.loader, self.callback)
        return spec


class _NotifyingLoader(Loader):
    def __init__(self, loader: Loader, callback: Callable[[ModuleType], None]) -> None:
        self.loader = loader
        self.callback = callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.callback(module)


def register_adapter_targets(peft_constants: ModuleType) -> None:
    """Give PEFT's adapters the default targets they have for Llama: our projections carry the same names.

    PEFT offers no registration; its documented table of defaults is a dictionary per adapter kind.
    """
    for name, targets in vars(peft_constants).items():
        if name.endswith("_MODULES_MAPPING") and "llama" in targets:
            targets.setdefault("scratch_gpt", targets["llama"])
