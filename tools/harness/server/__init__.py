"""A real server of the host, its frontend in a browser, and what it says of the nodes."""
