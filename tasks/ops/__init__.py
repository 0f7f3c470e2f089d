"""Plain functions of the data half; they import neither Prefect, Ray nor torch."""
