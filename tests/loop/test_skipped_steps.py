"""skipped_steps.json has pairs of steps; people may edit it."""

import pytest

from train.loop.skipped_steps import read_skip_windows, write_skip_windows


def test_what_is_written_is_read(tmp_path):
    assert read_skip_windows(tmp_path) == []
    write_skip_windows(tmp_path, [(3, 4), (6, 6)])
    assert read_skip_windows(tmp_path) == [(3, 4), (6, 6)]
    assert [path.name for path in tmp_path.iterdir()] == ["skipped_steps.json"]


@pytest.mark.parametrize("content", ["{", "{}", "[3, 4]", "[[3]]", "[[3, 4, 5]]", '[["a", "b"]]', "[[1.5, 2]]", "null"])
def test_anything_else_is_refused_with_the_name_of_the_file(tmp_path, content):
    (tmp_path / "skipped_steps.json").write_text(content)
    with pytest.raises(ValueError, match=r"skipped_steps.json is damaged: .*It has pairs of a first and a last step"):
        read_skip_windows(tmp_path)
