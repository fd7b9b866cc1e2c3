"""One file per family of tasks: which real data, how it is degraded, and where it is scored."""
