"""3D ResNet-RS (Du et al. 2021, arXiv 2109.01696)."""
