"""The page of all evaluations of a data set: what was saved, what it cost in accuracy, and whether it is adaptive."""
