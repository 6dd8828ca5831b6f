"""Models that are trained: kept in memory, ordered by sequence number, saved."""
