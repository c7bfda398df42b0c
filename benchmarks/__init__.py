"""Speed and quality against limits, each a command: `python -m benchmarks.NAME`."""
