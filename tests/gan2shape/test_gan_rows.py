"""Rows of the benchmark are configs that exist, and differ in what they say."""

import pytest

from benchmarks import gan_rows
from unsup3d_jax import cli, configuration, flags


@pytest.mark.parametrize("name", [*gan_rows.ROWS, *gan_rows.OTHERS])
def test_each_row_is_a_command_line_of_the_program(name, tmp_path):
    arguments = gan_rows.arguments_of(name, 3, 5, tmp_path, ["--config.stages.count=2"])
    args = flags.parse(["main.py", *arguments], cli.METHODS)
    assert args.config.seed == 3 and args.config.eval.max_images == 5
    plain = flags.parse(["main.py", f"--config={gan_rows.OURS}"], cli.METHODS)
    if name in gan_rows.ROWS:
        assert args.config.stages.count == 2
        before, after = (
            configuration.flatten(c.to_dict()) for c in (plain.config, args.config)
        )
        changed = {k for k in after if before[k] != after[k]}
        changed -= {"seed", "eval.max_images", "stages.count"}
        # Each key of a row changes something: none is the default already.
        assert changed == {key.partition("=")[0] for key in gan_rows.ROWS[name]}
    else:
        for key in ("pose", "background", "image_size"):
            assert args.config.data[key] == plain.config.data[key]


def test_the_table_shows_mean_and_range_over_seeds():
    def scores(side):
        row = {"side": {"mean": side}, "mad_deg": {"mean": 10.0}}
        return row | {"baselines": {"constant": {"side": {"mean": 0.02}}}}

    rows = [{"row": "ours", "scores": scores(side)} for side in (0.008, 0.01)]
    text = gan_rows.table(rows)
    assert "| ours | 0.900 (0.800, 1.000) | 10.00 (10.00, 10.00) | - | 2 |" in text
    assert "| constant (of ours) | 2.000 (2.000, 2.000) | - | - | 2 |" in text
