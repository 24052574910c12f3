"""What tests and tools need around the pack: a host, genuine tiny models, a server, a browser."""
