"""ClassDiffusion's and CLIF's mechanisms in a toy whose right answers are known."""
