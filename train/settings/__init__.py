"""Settings: the recipe parser, the options that several commands share, and the file names of a run folder."""
