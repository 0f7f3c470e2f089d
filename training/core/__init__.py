"""What all families share: configuration, the train loop, data, evaluation, tracking, serving."""
