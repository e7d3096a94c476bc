"""Other engines on the same jobs, each run only where it is installed."""
