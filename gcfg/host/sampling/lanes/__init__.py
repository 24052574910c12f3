"""What each MODEL of a recipe runs as: its weights, its patches, its conditionings, its hooks and ControlNets."""
