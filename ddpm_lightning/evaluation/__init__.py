"""Scores of samples against real images, and what one may conclude from them."""
