"""Mode `tables`: the rows of a paper's table, several seeds each, and the table.

    <workdir>/
      rows/<row>/seed<k>/   a workdir as training leaves it, with eval/<split>.json
      rows/<row>/together/  with tables.together: the training of all seeds as one;
                            their own workdirs then have scores only
      rows/<baseline>.json  rows without training
      rotnet.npz            the self-supervised encoder, where a row needs it
      table.json            everything below is made from it
      table.md              ours | paper | rank agreement
      figure.png            input, and each row's shape and albedo (Fig. 9)

A row and seed that is finished is not trained again; one that was interrupted
resumes. `table.json` is rewritten after each, so a table that is still being
filled can be read at any time.

    rows.py     which table, which rows, and the config of each
    run.py      what is missing is trained and scored
    summary.py  what each seed scored -> all that table.json holds
    text.py     table.json -> table.md
    figure.py   shape and albedo of each trained row
"""
