from pathlib import Path

import pytest

from cope_model.whole import appearing


def write(out: Path, text: str) -> None:
    with appearing(out, overwrite=True) as building:
        (building / "text").write_text(text)


def test_a_directory_is_replaced_by_a_whole_one_or_stays(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write(out, "old")
    assert (out.stat().st_mode & 0o777) == 0o755
    with pytest.raises(KeyError), appearing(out, overwrite=True) as building:
        (building / "text").write_text("half")
        raise KeyError
    assert (out / "text").read_text() == "old"
    write(out, "new")
    assert (out / "text").read_text() == "new"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_old_directory_is_there_until_the_new_one_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last step fails."""
    out = tmp_path / "out"
    write(out, "old")
    rename, seen = Path.rename, []

    def refuse(self: Path, target: Path) -> Path:
        if target == out and not seen:
            seen.append([path.read_text() for path in tmp_path.rglob("text")])
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(out, "new")
    assert sorted(seen[0]) == ["new", "old"]
    assert (out / "text").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(OSError), appearing(out, overwrite=False) as building:
        (building / "text").write_text("new")
    assert (out / "text").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
