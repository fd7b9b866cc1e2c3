"""The command line: one module for each command; none imports torch before it has work to do."""
