"""Diffusion models in PyTorch Lightning."""
