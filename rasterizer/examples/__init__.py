"""Short programs, each one task; README.md lists them and the tests run them."""
