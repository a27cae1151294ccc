"""What modes do before and beside training."""

import json

import pytest
import stn_people
from PIL import Image

from unsup3d_jax.errors import UserError
from unsup3d_jax.flags import Arguments
from unsup3d_jax.stn3dmm import modes, options, people, shipped


def test_the_report_shows_people_in_their_views(tmp_path, monkeypatch, capsys):
    def load_split(config, face, split):
        if split == "val":
            raise UserError("data.count_val: none.")
        return stn_people.dataset(config, split)

    monkeypatch.setattr(people, "load_split", load_split)
    config = stn_people.config()
    modes.run_data(Arguments("data", config, tmp_path), None)
    said = capsys.readouterr().out
    assert "train: 6 usable of 6 images" in said and "val: unusable" in said
    record = json.loads((tmp_path / "data" / "report.json").read_text())
    assert record["train"]["usable"] == 6 and "error" in record["val"]
    side, gap = stn_people.SIZE, 2
    with Image.open(tmp_path / "data" / "train.png") as sheet:
        # Six people in two views, eight pictures a row.
        assert abs(sheet.width - 8 * (side + gap)) <= gap
        assert abs(sheet.height - 2 * (side + gap)) <= gap
    assert "data" in modes.MODES


def test_without_a_run_the_shipped_localiser_is_scored(tmp_path, monkeypatch, capsys):
    config = stn_people.config()
    monkeypatch.setattr(shipped, "load", lambda config: ({"localiser": {}}, 9))
    found = modes.trained_or_shipped(Arguments("eval", config, tmp_path))
    assert found == ({"localiser": {}}, 9, shipped.ORIGIN)
    assert "the localiser that ships, 9 steps" in "".join(capsys.readouterr())
    # Asked for by name, a checkpoint that is not there is no reason to take another.
    with pytest.raises(UserError):
        other = Arguments("eval", config, tmp_path, checkpoint=tmp_path / "none")
        modes.trained_or_shipped(other)
    monkeypatch.undo()
    with pytest.raises(UserError, match="of another model"):
        modes.trained_or_shipped(Arguments("eval", config, tmp_path))
    options.check_config(config)
