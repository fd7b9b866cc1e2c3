"""How good a result is: metrics, simulated acquisitions of real volumes, and the bench that writes RESULTS.md."""
