from train.data.corpora import Document
from train.data.progress import CorpusProgress

DOCUMENTS = [Document("a", "abc"), Document("b", "é"), Document("c", "")]


def test_counts_documents_and_bytes(capsys):
    progress = CorpusProgress("read", total_bytes=100)
    assert list(progress.over(DOCUMENTS)) == DOCUMENTS
    assert (progress.num_documents, progress.num_bytes) == (3, 5)
    assert progress.seconds > 0
    bar = capsys.readouterr().err
    assert "read: 100%" in bar  # the estimate of 100 bytes is corrected
    assert "5.00/5.00" in bar


def test_counts_without_a_total(capsys):
    progress = CorpusProgress("read", total_bytes=None)
    list(progress.over(DOCUMENTS))
    assert progress.num_bytes == 5
