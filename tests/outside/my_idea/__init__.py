"""A package of somebody else's: one part of each kind, each a class in a file of its own."""
