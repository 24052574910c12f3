"""One forward pass for the predictions of many lanes: its rows, windows and masks, and patches that mix its rows."""
