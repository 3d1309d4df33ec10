"""A ladder: the experiments of one document, run in its order on any model, each against the row that it builds on."""
