"""The commands `fovea pipeline …` and `fovea primitives …`: a module per first word, none of them imports torch."""
