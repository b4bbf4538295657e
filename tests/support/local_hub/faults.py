"""Faults on purpose: each one affects the next `times` requests that match it."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class Cut(Exception):
    """The connection ends here: with FIN, or with RST."""

    def __init__(self, reset):
        super().__init__("cut")
        self.reset = reset


@dataclass
class Fault:
    methods: tuple[str, ...]
    path: str
    port: str | None
    times: float
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    download: int | None = None  # bytes of the response after which the connection is closed
    upload: int | None = None  # bytes of the request's body
    reset: bool = False
    is_corrupting: bool = False
    call: Callable | None = None

    def fits(self, request):
        is_there = self.port in (None, request.port) and request.method in self.methods
        return self.times > 0 and is_there and re.search(self.path, request.path)


class Gate:
    """Holds requests until a test lets them go."""

    def __init__(self):
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self):
        self._open.set()

    def __call__(self):
        self.reached.set()
        self._open.wait(60)


class Faults:
    """The methods of the hub add faults: `fail`, `cut_download`, and so on."""

    def __init__(self):
        self._faults = []
        self._lock = threading.Lock()

    def add(self, method, path, port, times, **what):
        methods = METHODS if method is None else tuple(method.split("|"))
        if unknown := set(methods) - set(METHODS):
            raise ValueError(f"method must be one or more of {METHODS} joined by '|', not {unknown}")
        self._faults.append(Fault(methods, path, port, float("inf") if times is None else times, **what))

    def take(self, request):
        """The faults that affect this request, the oldest first."""
        with self._lock:
            met = [fault for fault in self._faults if fault.fits(request)]
            for fault in met:
                fault.times -= 1
        return met
