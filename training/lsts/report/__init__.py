"""The page of all evaluations of a data set: accuracy against cost, hard frames, and where the alignment looks."""
