"""Several methods on the same work: same cases, split, budget and seeds; one table, beside what the papers report."""
