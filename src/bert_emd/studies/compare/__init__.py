"""Method against method: the same data, starts and seeds, one table."""
