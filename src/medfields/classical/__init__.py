"""The yardsticks: classical algorithms in the same frame as the papers, one file each."""
