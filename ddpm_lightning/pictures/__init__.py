"""Pictures: images and their files, grids, strips, figures."""
