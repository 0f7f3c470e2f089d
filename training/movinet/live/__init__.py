"""`fovea stream`: frames of a live source, the running answer, and what it is worth against labelled segments."""
