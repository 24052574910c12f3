"""A small SD1.5 family trained on emoji artwork; see README.md."""
