"""Mode `tables`: the rows of a paper's table, several seeds each, and the table.

    <workdir>/
      rows/<row>/seed<k>/   a workdir as training leaves it, with eval/<split>.json
                            (GAN2Shape's: and eval/view_control.json)
      rows/<row>/together/  with tables.together: the training of all seeds as one;
                            their own workdirs then have scores only
      rows/<baseline>.json  rows without training
      rotnet.npz            the self-supervised encoder, where a row needs it
      table.json            everything below is made from it
      table.md              ours | paper | rank agreement
      figure.png            input, and each row's shape and albedo (Fig. 9)

A row and seed that is finished is not trained again; one that was interrupted
resumes. Both are known by the config in the seed's workdir, so that a run of `main.py`
that had the same keys may be put there. `table.json` is rewritten after each, so a
table that is still being filled can be read at any time.

    rows.py            which table, which rows, and the config of each
    run.py             what is missing is trained and scored
    kinds.py           what a table asks of a method
    unsup3d_rows.py    that of unsup3d
    gan2shape_rows.py  that of GAN2Shape
    summary.py         what each seed scored -> all that table.json holds
    text.py            table.json -> table.md
    figure.py          shape and albedo of each trained row
"""
