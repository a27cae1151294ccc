"""Studies that run methods: the tables of the papers and what they need."""
