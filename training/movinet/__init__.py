"""MoViNets: mobile networks that see a video frame by frame."""
