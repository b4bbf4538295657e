"""Every fault at every file-system call of a command: `python -m benchmarks.faults`."""
