"""Training inside the host: a MODEL made trainable, its pictures, its previews, and handed back intact."""
