"""One run from start to end: the loop, its folder and state on disk, going on elsewhere, several processes."""
