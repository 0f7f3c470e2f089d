"""MoViNet: mobile video networks, and the search for them."""
