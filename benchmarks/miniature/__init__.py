"""The paper's comparison in miniature: fidelity against control, measured on tiny models. See README.md."""
