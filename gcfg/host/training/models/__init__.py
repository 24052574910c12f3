"""A host MODEL or CLIP as something that can be differentiated, and handed back intact."""
