"""What CI needs on a machine that has nothing: hosts, an environment, a browser; and the tests on every host."""
