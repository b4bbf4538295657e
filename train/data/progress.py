"""A progress bar for a pass over a corpus."""

import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm

from .corpora import Document


class CorpusProgress:
    """Count the documents and bytes of a pass, and show its rate and remaining time."""

    def __init__(self, name: str, total_bytes: int | None) -> None:
        self.name, self.total_bytes = name, total_bytes
        self.num_documents = self.num_bytes = 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents."""
        with tqdm(total=self.total_bytes, unit="B", unit_scale=True, desc=self.name, mininterval=0.5) as bar:
            for document in documents:
                yield document
                size = len(document.text.encode())
                self.num_documents += 1
                self.num_bytes += size
                bar.update(size)
            bar.total = bar.n  # the total was an estimate
