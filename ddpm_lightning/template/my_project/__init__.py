"""A network and a data set, named in config.yaml by their paths."""
