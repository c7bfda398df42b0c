"""Parser and error messages of the command line."""
