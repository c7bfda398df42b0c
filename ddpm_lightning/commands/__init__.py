"""The plain commands, which work on a checkpoint."""
