"""Recipes made for a user: published methods as chains, their noise levels, the axes and cells of a grid."""
