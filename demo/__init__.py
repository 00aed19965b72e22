"""The demo: a drawn dataset in the layout of the real one, and the walk through all commands on it (`make demo`)."""
